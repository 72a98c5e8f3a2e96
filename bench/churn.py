"""A cluster that never rests: fills an etcd with peers, then moves them about at a fixed rate. Run by bench/control.py.

    python -m bench.churn fill ENDPOINT BACKEND SUBNETS
    python -m bench.churn change ENDPOINT BACKEND SUBNETS PER_S SECONDS FIRST_EPOCH PREFIX

It runs beside the etcd, as a process of its own. "change" prints a line a transaction, as soon as etcd has answered it:
the moment in nanoseconds (CLOCK_MONOTONIC), then ``PLACE=ADDRESS`` for each subnet that moved.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

import grpc

from flannel_udp.model import LeaseAttrs, Subnet
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.keys import format_key, format_value

OVERLAY = IPv4Network("10.0.0.0/8")
SUBNET_LEN = 26
HOMES = IPv4Network("198.18.0.0/15")  # RFC 2544: benchmarks
ELSEWHERE = IPv4Network("100.64.0.0/10")  # RFC 6598
PREFIX = "/coreos.com/network"
PER_TRANSACTION = 10
FILL_PER_TRANSACTION = 128
"""etcd's own limit of operations in a transaction."""
_FIRST_SUBNET = int(OVERLAY[1 << 16])
_LEASE_S = 86_400


def subnet_at(place: int) -> IPv4Network:
    """Return the subnet of the peer at a place, counted from 0."""
    return IPv4Network((_FIRST_SUBNET + (place << (32 - SUBNET_LEN)), SUBNET_LEN))


def home_of(place: int) -> IPv4Address:
    """Return the public IP that the peer begins with."""
    return HOMES[1 + place]


def moves(n_subnets: int, first_epoch: int) -> Iterator[tuple[int, IPv4Address]]:
    """Yield for ever which place moves next, and where to: an address that nobody else has."""
    epoch = first_epoch
    while True:
        place = epoch * 7919 % n_subnets  # a prime: neighbours do not move one after the other
        yield place, ELSEWHERE[1 + epoch % (ELSEWHERE.num_addresses - 2)]
        epoch += 1


def lease_of(address: IPv4Address, backend: str) -> LeaseAttrs:
    """Return what the lease of the host at an address says; with vxlan each host has a MAC of its own."""
    match backend:
        case "udp":
            return LeaseAttrs(address)
        case "vxlan":
            mac = "02:00:" + address.packed.hex(":")
            return LeaseAttrs(address, backend_type=backend, backend_data={"VNI": 1, "VtepMAC": mac})
    return LeaseAttrs(address, backend_type=backend)


class Store:
    """etcd, through its own protocol."""

    def __init__(self, endpoint: str, backend: str, prefix: str) -> None:
        self._backend = backend
        channel = grpc.insecure_channel(endpoint)
        self._txn = channel.unary_unary(
            "/etcdserverpb.KV/Txn", pb.TxnRequest.SerializeToString, pb.TxnResponse.FromString
        )
        grant = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest.SerializeToString, pb.LeaseGrantResponse.FromString
        )
        self._subnets = f"{prefix}/subnets/"
        self._lease_id = grant(pb.LeaseGrantRequest(ttl=_LEASE_S)).id

    def put(self, peers: Iterable[tuple[int, IPv4Address]]) -> None:
        """Write peers in one transaction, under a lease as their agents would."""
        puts = [
            pb.PutRequest(
                key=f"{self._subnets}{format_key(Subnet(subnet_at(place)))}".encode(),
                value=format_value(lease_of(address, self._backend)),
                lease=self._lease_id,
            )
            for place, address in peers
        ]
        self._txn(pb.TxnRequest(success=[pb.RequestOp(put=put) for put in puts]))


def fill(store: Store, n_subnets: int) -> None:
    """Write the peers with the places from 0 on."""
    for first in range(0, n_subnets, FILL_PER_TRANSACTION):
        places = range(first, min(first + FILL_PER_TRANSACTION, n_subnets))
        store.put((place, home_of(place)) for place in places)


def change(store: Store, todo: Iterator[tuple[int, IPv4Address]], per_s: int, seconds: float) -> None:
    """Make moves, PER_TRANSACTION at a time, at the rate that was asked for; a late transaction is made up for."""
    started_s = time.monotonic()
    for number in range(int(per_s * seconds / PER_TRANSACTION)):
        time.sleep(max(0.0, started_s + number * PER_TRANSACTION / per_s - time.monotonic()))
        moved = [next(todo) for _ in range(PER_TRANSACTION)]
        store.put(moved)
        answered_ns = time.monotonic_ns()
        print(answered_ns, *(f"{place}={address}" for place, address in moved), flush=True)  # noqa: T201 - its output


def write_file(n_subnets: int, reserved: dict[str, str], config: dict[str, object], backend: str = "udp") -> str:
    """Return a registry file with the same peers, as reservations."""
    subnets: dict[str, object] = {key.replace("/", "-"): {"PublicIP": address} for key, address in reserved.items()}
    for place in range(n_subnets):
        subnets[format_key(Subnet(subnet_at(place)))] = json.loads(format_value(lease_of(home_of(place), backend)))
    return json.dumps({"config": config, "subnets": subnets}, indent=2)


if __name__ == "__main__":
    what, endpoint, backend, n_subnets, *more = sys.argv[1:]
    if what == "fill":
        fill(Store(endpoint, backend, PREFIX), int(n_subnets))
    else:
        per_s, seconds, first_epoch, prefix = more
        todo = moves(int(n_subnets), int(first_epoch))
        change(Store(endpoint, backend, prefix), todo, int(per_s), float(seconds))
