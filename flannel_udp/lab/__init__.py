"""Hosts in network namespaces: for trying, teaching, testing and measuring. Nothing touches the root namespace.

Rooms of the library, from the bottom: `netns` (namespaces and what runs in them), `ethtool` (offload switches),
`plan` (what a lab shall look like, where its files live; `topology`, from a file), `node` (a host, a pod: run commands,
start the agent), `registry` (what its agents find there), `lab` (class `Lab`: up, attach, down), `inside` (become a
command there), `inspection` (what there is). For the demonstration: `probe` (pings, one TCP transfer), `capture` (one
packet at each step), `by_hand` (the routes that alloc leaves to others), `drawing`, `svg`, `graph`, `demo`. What can be
broken and put right: `links`, `faults` (agents, etcd), `poison` (keys of the registry), `spoof`. What the commands do
is in `actions` and `fault_actions`. `lessons`: what is learnt in a lab, and checked there; `toml_table` reads the files
that people write. An ordinary user's: `rootless`, `holder`; `libc`, for these, `inside` and `netns`.

    with Lab(Plan("try", hosts=2)) as lab:
        lab.node("h1/p1").run(["ping", "-c1", str(lab.node("h2/p1").ip)])
"""
