"""The packet path, compiled. Nothing in here touches a Python object per packet.

How a packet meets the modules:

    outbound  engine.poll ─▶ outbound: sysio.tun_read ─▶ inner.check_header ─▶ routes.lookup ─▶ inner.take_a_hop
                                       ─▶ pathmtu ─▶ split, fragment ─▶ encapsulation ─▶ sendqueue ─▶ transmit
                                       ─▶ sysio.udp_send
    inbound   engine.poll ─▶ inbound:  sysio.udp_receive ─▶ encapsulation ─▶ inner.check_header ─▶ source and
                                       subnet check ─▶ ecn ─▶ inner.take_a_hop ─▶ offloaded ─▶ coalesce ─▶ deliver
                                       ─▶ sysio.tun_write
    drops     drops.count_drops, and for some an answer: answer.answer_sender
    captures  while somebody looks, what each of these places sees: capture, which writes to capture_ring
    refusals  an errno that sysio returns ─▶ refusal says what helps ─▶ transmit does it, or it is a drop

Each direction is compiled once for each encapsulation and IP version: `inner` says in what the versions differ, by way
of `ipv4` and `ipv6`, `transport` where TCP and UDP are behind either header. IPv6 has a table of its own, `routes6`.

Only `engine`, `routes`, `routes6` and `capture_ring` are for Python; `checksum`, `drops`, `icmp` and `icmp6` show some
of their inner functions so that tests can compare them with the pure-Python twin (`flannel_udp.dataplane.reference`).

What is small and runs for every packet is `cdef inline` in a .pxd. The rest is called in its own module through a
pointer, a few times a packet at most: to read or write it, to cut it or complete its checksum, to queue it for the TUN.
"""
