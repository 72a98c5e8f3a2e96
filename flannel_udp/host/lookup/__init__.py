"""What the kernel does with overlay traffic: asked, never assumed.

`question` asks where a packet would go, `rules` and `prefixes` hold what may lead some packets elsewhere, `diversions`
judges the answers, `forwarding` asks which devices forward, `cut_off` whether the overlay's route takes what the agent
itself needs; `news` tells when to ask again. Everything that asks blocks: call it through ``asyncio.to_thread``.
"""
