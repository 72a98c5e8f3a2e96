"""The packet path, compiled. Nothing in here touches a Python object per packet.

How a packet meets the modules:

    outbound  engine.poll ─▶ outbound: sysio.tun_read ─▶ ipv4.parse ─▶ routes.lookup ─▶ ipv4.decrement_ttl
                                       ─▶ pathmtu ─▶ split ─▶ sendqueue ─▶ transmit ─▶ sysio.send_messages
    inbound   engine.poll ─▶ inbound:  sysio.udp_receive ─▶ ipv4.parse ─▶ source and subnet check ─▶ ecn
                                       ─▶ ipv4.decrement_ttl ─▶ coalesce ─▶ sysio.tun_write
    drops     drops.count_drops, and for some an answer: answer.answer_sender

Only `engine` and `routes` are for Python; `checksum`, `drops` and `icmp` show some of their inner functions so that
tests can compare them with the pure-Python twin (`flannel_udp.dataplane.reference`).

The modules meet once a batch; what runs once a packet is `cdef inline` in a .pxd.
"""
