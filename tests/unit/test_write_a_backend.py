"""docs/write-a-backend.md is right: what it quotes is the code, and the backend that it writes runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flannel_udp.backend.protocol import Backend, Context, Network
from flannel_udp.backend.remains import remove_remains
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.peers import PeerTable
from flannel_udp.errors import ConfigError
from flannel_udp.model import Delta, Ends, Entry, Interface, Lease, Peer, Snapshot, Subnet
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options
from flannel_udp.registry.keys import format_value

ROOT = Path(__file__).parents[2]
*QUOTES, EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write-a-backend.md").read_text(), re.DOTALL)
SOURCES = [(ROOT / "flannel_udp" / "backend" / name).read_text() for name in ("alloc.py", "table.py")]

OWN = IPv4Network("10.1.15.0/24")
FIRST = Peer(IPv4Network("10.1.16.0/24"), IPv4Address("192.0.2.2"), 1500)
SECOND = Peer(IPv4Network("10.1.17.0/24"), IPv4Address("192.0.2.3"), 1400)
LINES = [
    "10.1.16.0/24 via 192.0.2.2 mtu 1450 metric 7\n",
    "10.1.17.0/24 via 192.0.2.3 mtu 1400 metric 7\n",
]


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.split("(")[0].split()[-1])
def test_what_the_page_quotes_is_the_code(quote: str) -> None:
    assert any(quote in source for source in SOURCES)


def test_the_page_quotes_all_of_alloc() -> None:
    quoted = "".join(QUOTES)
    (_, code) = SOURCES[0].split("\n\n\n", 1)
    assert [line for line in code.splitlines() if line not in quoted] == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "routes"


@pytest.fixture
def backend(file: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The page's backend, with its file in a folder of the test."""
    module = ModuleType("routes_file_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLE, "docs/write-a-backend.md", "exec"), module.__dict__)  # noqa: S102 - our own page
    module.FILE = file  # type: ignore[attr-defined]
    found: Backend = module.BACKEND
    return found


def config_of(backend: Backend, **options: Any) -> NetworkConfig:
    document = {"Network": "10.1.0.0/16", "Backend": {"Type": "Routes-File", **options}}
    return parse_network_config(json.dumps(document), {**BACKENDS, backend.type: backend}).config


def interface(mtu: int = 1450) -> Interface:
    return Interface("eth0", 2, mtu, Ends(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1")))


@pytest.fixture
async def network(backend: Backend) -> Network:
    return await backend.open(Context(Options(), config_of(backend, Metric=7), interface(), lambda: None))


def required(protocol: type) -> Iterator[str]:
    for each in protocol.__mro__:
        names = {*vars(each), *vars(each).get("__annotations__", ())}
        yield from (name for name in names if not name.startswith("_"))


def test_it_has_all_that_the_seam_asks_for(backend: Backend, network: Network) -> None:
    assert [name for name in required(Backend) if not hasattr(backend, name)] == []
    assert [name for name in required(Network) if not hasattr(network, name)] == []


def test_its_options_are_read_and_refused_like_any_other_s(backend: Backend) -> None:
    assert config_of(backend).backend.options == {"Metric": 20}
    with pytest.raises(ConfigError) as caught:
        config_of(backend, Metric=0)
    assert caught.value.faults == ["Backend.Metric is 0: expected 1 to 1000"]


async def test_a_host_without_a_place_for_the_file_is_told(backend: Backend, file: Path) -> None:
    await backend.check(config_of(backend), interface())
    file.parent.rmdir()
    with pytest.raises(ConfigError, match="start the routing daemon first"):
        await backend.check(config_of(backend), interface())


def test_the_leases_of_its_hosts_become_peers_and_no_others(backend: Backend, network: Network) -> None:
    leases = {
        "10.1.16.0-24": format_value(network.attrs).replace(b"192.0.2.1", b"192.0.2.2"),
        "10.1.17.0-24": b'{"PublicIP":"192.0.2.3","BackendType":"routes-file"}',
        "10.1.18.0-24": b'{"PublicIP":"192.0.2.4","BackendType":"host-gw"}',
    }
    table = PeerTable(config_of(backend).overlays, network.attrs, lambda attrs, _version: backend.read_hop(attrs))
    delta = table.apply(Snapshot({key: Entry(key, value, 1) for key, value in leases.items()}, 1))
    assert delta.added == (Peer(FIRST.subnet, FIRST.public_ip, 1450),)
    no_mtu, another_type = delta.warnings
    assert "its BackendData has no MTU from 68 to 65535" in no_mtu
    assert "its backend is 'host-gw', ours is routes-file" in another_type


async def test_peers_that_come_and_go_are_written_down(network: Network, file: Path) -> None:
    await network.hold(Subnet(OWN), None)
    await network.publish(Subnet(OWN), [Delta(added=(FIRST, SECOND))], whole=True)
    network.start()
    assert file.read_text() == "".join(LINES)
    assert network.route(FIRST.subnet[7]).peer == FIRST
    assert network.route(OWN[7]).own
    await network.publish(Subnet(OWN), [Delta(removed=(FIRST,))], whole=False)
    assert file.read_text() == LINES[1]
    await network.withdraw()
    assert file.read_text() == ""
    assert network.route(SECOND.subnet[7]).peer is None


async def test_an_edited_file_is_put_right_and_counted(network: Network, file: Path) -> None:
    await network.repair()  # nothing is published yet
    assert not file.exists()
    await network.publish(Subnet(OWN), [Delta(added=(FIRST,))], whole=True)
    await network.repair()
    file.write_text("edited")
    await network.repair()
    assert (file.read_text(), network.repairs["file"]) == (LINES[0], 1)


async def test_nothing_of_it_stays_once_another_backend_runs(backend: Backend, file: Path) -> None:
    file.write_text("left")
    table: dict[str, Backend] = {"alloc": BACKENDS["alloc"], backend.type: backend}

    async def no_leases() -> list[Lease]:
        return []

    removed = await remove_remains(
        *(BACKENDS["alloc"], table, None, (), no_leases), versions=(4,), routes=False, alone=True
    )
    assert removed == [f"{file} of the backend routes-file"]
    assert not file.exists()
