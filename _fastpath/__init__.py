"""The packet path, compiled. Nothing in here touches a Python object per packet.

How a packet meets the modules:

    outbound  engine.poll ─▶ outbound: sysio.tun_read ─▶ ipv4.parse ─▶ routes.lookup ─▶ ipv4.decrement_ttl
                                       ─▶ pathmtu ─▶ split ─▶ sendqueue ─▶ transmit ─▶ sysio.udp_send
    inbound   engine.poll ─▶ inbound:  sysio.udp_receive ─▶ ipv4.parse ─▶ source and subnet check ─▶ ecn
                                       ─▶ ipv4.decrement_ttl ─▶ coalesce ─▶ deliver ─▶ sysio.tun_write
    drops     drops.count_drops, and for some an answer: answer.answer_sender
    refusals  an errno that sysio returns ─▶ refusal says what helps ─▶ transmit does it, or it is a drop

Only `engine` and `routes` are for Python; `checksum`, `drops` and `icmp` show some of their inner functions so that
tests can compare them with the pure-Python twin (`flannel_udp.dataplane.reference`).

What is small and runs for every packet is `cdef inline` in a .pxd. The rest is called in its own module through a
pointer, a few times a packet at most: to read or write it, to cut it or complete its checksum, to queue it for the TUN.
"""
