"""Who has which subnet, read with python-etcd3: an independent look at what the agents write.

    pip install etcd3==0.12.0 'protobuf<3.21'
    python examples/etcd3_observer.py [HOST [PORT [PREFIX]]]

etcd3 needs an older protobuf than the agent, so give it a virtual environment of its own. Nothing is written.
"""

from __future__ import annotations

import sys

import etcd3


def main(host: str = "127.0.0.1", port: str = "2379", prefix: str = "/coreos.com/network") -> None:
    """Print one line a lease: its subnet, the seconds it has left, and the value as it is stored."""
    client = etcd3.client(host=host, port=int(port))
    config, _ = client.get(f"{prefix}/config")
    print(f"{'configuration':<20} {'':>12} {'none' if config is None else config.decode()}")
    for value, metadata in client.get_prefix(f"{prefix}/subnets/"):
        key = metadata.key.decode().rpartition("/")[2]
        left = f"{client.get_lease_info(metadata.lease_id).TTL} s" if metadata.lease_id else "reserved"
        print(f"{key:<20} {left:>12} {value.decode()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
