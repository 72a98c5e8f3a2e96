"""Kubernetes as a registry of both families: podCIDRs in any order, what is annotated of each, and IPv6 alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from flannel_udp.model import LEASE_TTL_S, Subnet
from flannel_udp.options import KubeOptions
from flannel_udp.registry.keys import parse_key, parse_value
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer
from tests.registry.test_kube import KEY, api, opened, options, register

__all__ = ["api", "options"]

DUAL_VALUE = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}'
)
V6_VALUE = (
    b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
    b'"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}'
)


@pytest.fixture
async def dual(api: ApiServer, options: KubeOptions) -> AsyncIterator[KubeRegistry]:
    """The registry as node h1 has it, a node with podCIDRs of both families."""
    api.add_node("h1", "fd00:1:2::/64,10.1.15.0/24")
    async with opened(options) as registry:
        yield registry


async def test_a_dual_stack_node_is_registered_as_flanneld_does(api: ApiServer, dual: KubeRegistry) -> None:
    entry = await register(dual, DUAL_VALUE)
    assert (entry.key, entry.value) == (f"{KEY}&fd00:1:2::-64", DUAL_VALUE)
    assert api.do(lambda store: store.annotations("h1")) == {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
        "backend-v6-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}',
        "public-ip": "192.0.2.1",
        "public-ipv6": "2001:db8::1",
    }
    assert await dual.renew(entry, DUAL_VALUE, LEASE_TTL_S) == entry
    assert api.count("patch") == 1


async def test_a_node_with_ipv6_alone_is_found_by_its_public_ipv6(api: ApiServer, options: KubeOptions) -> None:
    api.add_node("h1", "fd00:1:2::/64")
    # As flanneld's vxlan leaves it, which writes nothing of IPv4 then.
    v6 = {"public_ipv6": "2001:db8::2", "backend_v6_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}'}
    api.add_node("h2", "fd00:1:3::/64", kube_subnet_manager="true", backend_type="vxlan", **v6)
    async with opened(options) as registry:
        entry = await register(registry, V6_VALUE)
        assert (entry.key, entry.value) == ("0.0.0.0-0&fd00:1:2::-64", V6_VALUE)
        other = (await registry.list()).entries["0.0.0.0-0&fd00:1:3::-64"]
    assert api.do(lambda store: store.annotations("h1"))["public-ip"] == "0.0.0.0"
    attrs = parse_value(other.value)
    assert (attrs.public_ip, attrs.found_by) == (None, IPv6Address("2001:db8::2"))
    assert attrs.backend_v6_data == {"VNI": 1, "VtepMAC": "02:00:00:00:00:03"}


async def test_what_was_said_of_ipv6_goes_when_it_is_off(api: ApiServer, dual: KubeRegistry) -> None:
    await register(dual, DUAL_VALUE)
    await register(dual)
    said = api.do(lambda store: store.annotations("h1"))
    assert not [name for name in said if "v6" in name]
    assert said["public-ip"] == "192.0.2.1"


async def test_the_administrators_public_ipv6_is_what_others_see(
    api: ApiServer, dual: KubeRegistry, options: KubeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    api.do(lambda store: store.annotate("h1", public_ipv6_overwrite="2001:db8:7::7"))
    entry = await register(dual, DUAL_VALUE)
    said = api.do(lambda store: store.annotations("h1"))
    assert (said["public-ip"], said["public-ipv6"]) == ("192.0.2.1", "2001:db8:7::7")
    assert entry.value == DUAL_VALUE  # to ourselves we are who we were
    async with opened(options, NODE_NAME="h2") as other:
        seen = parse_value((await other.list()).entries[entry.key].value)
    assert (seen.public_ip, seen.public_ipv6) == (IPv4Address("192.0.2.1"), IPv6Address("2001:db8:7::7"))
    assert await dual.renew(entry, DUAL_VALUE, LEASE_TTL_S) == entry
    assert "reach this one at 2001:db8:7::7: flannel.alpha.coreos.com/public-ipv6-overwrite says so" in caplog.text


@pytest.mark.parametrize(
    ("overwrite", "why"),
    [
        ("::1", "is no address of one host"),
        ("192.0.2.7", "is no IPv6 addr"),
        ("2001:db8::7%eth0", "is no IPv6 addr"),  # to Go's net.ParseIP
    ],
)
async def test_an_administrators_public_ipv6_by_which_nobody_reaches_us_is_warned_about(
    api: ApiServer, dual: KubeRegistry, caplog: pytest.LogCaptureFixture, overwrite: str, why: str
) -> None:
    api.do(lambda store: store.annotate("h1", public_ipv6_overwrite=overwrite))
    await register(dual, DUAL_VALUE)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(
        "other hosts ignore us: our flannel.alpha.coreos.com/public-ipv6-overwrite " + f"{overwrite} {why}"
    )


@pytest.mark.parametrize(
    ("cidrs", "key"),
    [
        ("10.1.15.0/24,fd00:1:2::/64", f"{KEY}&fd00:1:2::-64"),
        ("fd00:1:2::/64,10.1.15.0/24", f"{KEY}&fd00:1:2::-64"),
        ("FD00:1:2:0::/64,10.1.15.0/24", f"{KEY}&fd00:1:2::-64"),
        ("fd00:1:2::/64", "0.0.0.0-0&fd00:1:2::-64"),
    ],
)
async def test_the_podcidrs_of_both_families_are_one_subnet_in_any_order(
    cidrs: str, key: str, api: ApiServer, options: KubeOptions
) -> None:
    api.add_node("h1", cidrs)
    async with opened(options) as registry:
        assert (await register(registry)).key == key


async def test_a_podcidr_of_one_family_that_is_none_leaves_the_other(api: ApiServer, options: KubeOptions) -> None:
    """Which of them counts is for the configuration to say."""
    api.add_node("h1", "10.1.15.0/24,fd00:1:2::7/64")
    async with opened(options) as registry:
        faults: dict[int, str] = {}
        assert parse_key((await registry.assigned()).key, faults) == Subnet(IPv4Network("10.1.15.0/24"))
        assert list(faults) == [6]


@pytest.mark.parametrize(
    ("versions", "key"),
    [((4,), KEY), ((6,), "0.0.0.0-0&fd00:1:2::-64"), ((4, 6), f"{KEY}&fd00:1:2::-64")],
    ids=["IPv4", "IPv6", "both"],
)
async def test_the_families_that_are_on_make_the_key(
    versions: tuple[int, ...], key: str, api: ApiServer, dual: KubeRegistry
) -> None:
    api.add_node("h2", "10.1.16.0/24,fd00:1:3::/64", kube_subnet_manager="true", public_ip="192.0.2.2")
    dual.count_families(versions)
    entry = await register(dual)
    assert entry.key == key
    assert set((await dual.list()).entries) == {key, key.replace("15", "16").replace("1:2:", "1:3:")}


async def test_a_node_without_a_podcidr_of_a_family_that_is_on_has_the_key_that_says_so(
    api: ApiServer, options: KubeOptions
) -> None:
    api.add_node("h1", "10.1.15.0/24")
    async with opened(options) as registry:
        registry.count_families((6,))
        assert (await registry.assigned()).key == KEY


async def test_an_entry_that_an_agent_wrote_which_knows_ipv4_alone_is_taken_over(
    api: ApiServer, dual: KubeRegistry, options: KubeOptions
) -> None:
    dual.count_families((4,))
    written = await register(dual)
    assert written.key == KEY  # as of a node that has IPv4 alone, which is all that such an agent sees
    async with opened(options) as ours:
        ours.count_families((4,))
        ours.adopt(written)
        assert await ours.time_left_s(written) is None
        renewed = await ours.renew(written, written.value, LEASE_TTL_S)
    assert (renewed.key, renewed.value) == (written.key, written.value)
    assert api.count("patch") == 1
