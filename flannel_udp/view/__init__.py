"""`lab view`: a lab as a page in a browser of this machine.

    browser ── HTTP, events ── server ─┬─ JSON lines ── collector, a child process: what is, once a second
                                       └─ a child process each ── `flannel-udp lab …`: what somebody asks for

The page does nothing that a command does not do, and shows the command. `gate` lets in who has the token; `server`
answers; `looks` shares one collection among all viewers; `child` runs processes, of which `collector` is where the lab
is, and by `reading` tells what it is like (`interfaces`, `rates`); `commands` are what the buttons stand for; `steps`
makes of a packet's way what is replayed; page/ is what the browser gets, as it is.
"""
