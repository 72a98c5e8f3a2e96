#!/bin/sh
# A session with the tools, on hosts and pods in network namespaces: what is there, what passes, what becomes of a packet,
# and what a mistake looks like. As root, with flannel-udp in the PATH; docs/session.md is what it printed once.
#   sh examples/session.sh [NAME OF THE LAB]
set -eu
lab=${1:-session}
h1=/run/flannel-udp-lab/$lab/h1/flannel-udp.sock
h2=/run/flannel-udp-lab/$lab/h2/flannel-udp.sock

tell() { printf '\n# %s\n' "$*"; }
run() {
    printf '$ %s\n' "$*"
    "$@" 2>&1
}

tell 'Three hosts, a pod on each, an agent on every host.'
run flannel-udp lab up --name "$lab" --hosts 3
trap 'flannel-udp lab down --name "$lab" >/dev/null 2>&1 || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
pod2=$(flannel-udp lab status --name "$lab" --json | grep -o '"ip": "[^"]*"' | sed -n 2p | cut -d '"' -f 4)

tell 'Can the pods talk? And what does the agent of h1 see of it, going out and coming in, inside and outside of the tunnel?'
run flannel-udp lab exec --name "$lab" h1/p1 -- ping -q -c 3 -i 0.2 "$pod2"
flannel-udp lab exec --name "$lab" h1/p1 -- ping -q -i 0.1 -w 60 "$pod2" >/dev/null 2>&1 &
pings=$!
run flannel-udp capture --count 8 --for 30s --control-socket "$h1"

tell 'Who the other hosts are, when they were heard, what was exchanged.'
run flannel-udp peers --control-socket "$h1"
run flannel-udp top --once --control-socket "$h1"
kill "$pings" 2>/dev/null || true  # they may have had their minute

tell 'What would become of a SYN from pod to pod, byte by byte, on both hosts. Nothing is sent.'
run flannel-udp lab trace --name "$lab" h1/p1 h2/p1 --tcp 80

tell 'A firewall rule too many on h2. The agent of h1 asks who does not answer any more; h2 knows what is wrong.'
run flannel-udp lab exec --name "$lab" h2 -- iptables -I INPUT -p udp --dport 8285 -j DROP
run flannel-udp lab exec --name "$lab" h1/p1 -- ping -q -c 3 -i 0.2 -W 1 "$pod2" || true
run flannel-udp lab exec --name "$lab" h2 -- flannel-udp doctor --control-socket "$h2" --subnet-file "${h2%/*}/subnet.env" || true
run flannel-udp lab exec --name "$lab" h2 -- iptables -D INPUT -p udp --dport 8285 -j DROP
run flannel-udp lab exec --name "$lab" h1/p1 -- ping -q -c 3 -i 0.2 -W 20 "$pod2"

tell 'And away with it.'
run flannel-udp lab down --name "$lab"
