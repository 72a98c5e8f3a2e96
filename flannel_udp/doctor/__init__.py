"""`flannel-udp doctor`: asks of this host what keeps overlay traffic from passing, and says what mends it.

`known` gathers what the agent, subnet.env and the registry say; each other module has some questions: a pure function
that judges what was asked, and the asking. `examine` has their order.
"""
