"""Kubernetes as a registry: what nodes say becomes entries, and our node says what flannel's would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError
from flannel_udp.model import LEASE_TTL_S, Entry
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube import client as kube_client
from flannel_udp.registry.kube import registry as kube
from flannel_udp.registry.kube.nodes import KubeNode
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer, Fault
from tests.kube_api.store import Refused, Store
from tests.registry.support import Watching, watching

KEY = "10.1.15.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_KEY = "10.1.16.0-24"
OTHER_VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'
PEER = {"kube_subnet_manager": "true", "backend_type": "", "backend_data": "null", "public_ip": "192.0.2.2"}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture
def options(api: ApiServer) -> KubeOptions:
    return KubeOptions(subnet_mgr=True, api_url=api.url)


@asynccontextmanager
async def opened(options: KubeOptions, **environ: str) -> AsyncIterator[KubeRegistry]:
    registry = KubeRegistry(options, environ or {"NODE_NAME": "h1"})
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
async def registry(api: ApiServer, options: KubeOptions) -> AsyncIterator[KubeRegistry]:
    """The registry as node h1 has it, which no agent has registered yet."""
    api.add_node("h1", "10.1.15.0/24")
    async with opened(options) as registry:
        yield registry


async def register(registry: KubeRegistry, value: bytes = VALUE) -> Entry:
    return await registry.renew(await registry.assigned(), value, LEASE_TTL_S)


# Our own node


async def test_the_subnet_of_a_fresh_node_is_assigned_and_registered(api: ApiServer, registry: KubeRegistry) -> None:
    assigned = await registry.assigned()
    assert (assigned.key, assigned.value, assigned.reserved) == (KEY, b"", True)
    entry = await registry.renew(assigned, VALUE, LEASE_TTL_S)
    assert (entry.key, entry.value, entry.reserved) == (KEY, VALUE, True)
    assert api.do(lambda store: store.annotations("h1")) == {
        "kube-subnet-manager": "true",
        "backend-type": "",
        "backend-data": "null",
        "public-ip": "192.0.2.1",
    }
    assert await registry.assigned() == entry
    assert (await registry.list()).entries == {KEY: entry}
    assert await registry.time_left_s(entry) is None


async def test_a_node_that_says_what_it_should_is_not_written(api: ApiServer, registry: KubeRegistry) -> None:
    entry = await register(registry)
    assert api.count("patch") == 1
    assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    assert api.count("patch") == 1


async def test_annotations_of_others_are_left_alone(api: ApiServer, registry: KubeRegistry) -> None:
    api.do(lambda store: store.change_node("h1", {"metadata": {"annotations": {"example.org/x": "y"}}}))
    await register(registry)
    assert api.do(lambda store: store.nodes["h1"]["metadata"]["annotations"]["example.org/x"]) == "y"


@pytest.mark.parametrize(
    ("prefix", "annotation"),
    [
        ("flannel.example.org", "flannel.example.org/public-ip"),
        ("flannel.example.org/", "flannel.example.org/public-ip"),
        ("example.org/net", "example.org/net-public-ip"),
        ("example.org/net-", "example.org/net-public-ip"),
    ],
)
async def test_annotations_have_the_prefix_that_was_asked_for(
    prefix: str, annotation: str, api: ApiServer, options: KubeOptions
) -> None:
    api.add_node("h1", "10.1.15.0/24")
    api.add_node("h2", "10.1.16.0/24", **PEER)  # of another flannel
    async with opened(replace(options, annotation_prefix=prefix)) as registry:
        entry = await register(registry)
        assert (await registry.list()).entries == {KEY: entry}
    assert api.do(lambda store: store.nodes["h1"]["metadata"]["annotations"])[annotation] == "192.0.2.1"


async def test_the_administrators_public_ip_is_what_others_see(
    api: ApiServer, registry: KubeRegistry, options: KubeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    api.do(lambda store: store.annotate("h1", public_ip_overwrite="203.0.113.7"))
    entry = await register(registry)
    assert api.do(lambda store: store.annotations("h1"))["public-ip"] == "203.0.113.7"
    assert (await registry.list()).entries == {KEY: entry}
    assert entry.value == VALUE  # to ourselves we are who we were
    async with opened(options, NODE_NAME="h2") as other:
        assert (await other.list()).entries[KEY].value == b'{"PublicIP":"203.0.113.7","PublicIPv6":null}'
    assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    assert api.count("patch") == 1
    assert (
        "other hosts reach this one at 203.0.113.7: flannel.alpha.coreos.com/public-ip-overwrite says so" in caplog.text
    )


@pytest.mark.parametrize(("overwrite", "why"), [("127.0.0.1", "is no address of one host"), ("h1", "is no IPv4")])
async def test_an_administrators_public_ip_by_which_nobody_reaches_us_is_warned_about(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture, overwrite: str, why: str
) -> None:
    api.do(lambda store: store.annotate("h1", public_ip_overwrite=overwrite))
    await register(registry)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(
        "other hosts ignore us: our flannel.alpha.coreos.com/public-ip-overwrite " + f"{overwrite} {why}"
    )


async def test_an_annotation_that_only_flanneld_reads_is_named_where_it_says_something_else(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    api.do(lambda store: store.annotate("h1", node_public_ip="10.0.0.5"))
    entry = await register(registry)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "node 'h1': flannel.alpha.coreos.com/node-public-ip is 10.0.0.5, which is not read: see --iface and --public-ip"
    ]
    caplog.clear()
    api.do(lambda store: store.annotate("h1", node_public_ip=json.loads(entry.value)["PublicIP"], public_ip="x"))
    await registry.renew(entry, entry.value, LEASE_TTL_S)
    assert "not read" not in caplog.text


async def test_the_node_is_found_through_the_pod(api: ApiServer, options: KubeOptions) -> None:
    api.add_node("h1", "10.1.15.0/24")
    pod = {"metadata": {"name": "flannel-x"}, "spec": {"nodeName": "h1"}}
    api.do(lambda store: store.pods.update({("kube-flannel", "flannel-x"): pod}))
    async with opened(options, POD_NAMESPACE="kube-flannel", POD_NAME="flannel-x") as registry:
        assert (await registry.assigned()).key == KEY
        await registry.assigned()
    assert sum(seen.resource == "pods" for seen in api.requests) == 1  # a pod does not move


async def test_a_pod_that_is_not_there_or_not_scheduled_is_told(api: ApiServer, options: KubeOptions) -> None:
    async with opened(options, POD_NAMESPACE="kube-flannel", POD_NAME="flannel-x") as registry:
        with pytest.raises(RegistryError, match='pods "flannel-x" not found'):
            await registry.assigned()
        api.do(lambda store: store.pods.update({("kube-flannel", "flannel-x"): {"spec": {}}}))
        with pytest.raises(RegistryError, match="pod kube-flannel/flannel-x says nothing of its node: set NODE_NAME"):
            await registry.assigned()


async def test_a_node_that_does_not_exist_is_told(options: KubeOptions) -> None:
    for name in ("h9", "../h1", "h1?watch=true", "a%2Fb"):
        async with opened(options, NODE_NAME=name) as registry:
            with pytest.raises(
                RegistryError, match=r"not found: is '.*' \(NODE_NAME\) the node's name in `kubectl get no"
            ):
                await registry.assigned()


@pytest.mark.parametrize(
    ("cidrs", "fault"),
    [
        (None, r"node 'h1' has no podCIDR: run kube-controller-manager with --allocate-node-cidrs and --cluster-"),
        ("fd00:1::/129", r"node 'h1': podCIDR 'fd00:1::/129': .*prefix length 129"),
        ("fd00:1::1/64", r"node 'h1': podCIDR 'fd00:1::1/64': .*host bits are set"),
        ("10.1.15.7/24,fd00:1::", r"node 'h1': podCIDR '10\.1\.15\.7/24, fd00:1::': .* does not look like"),
        ("10.1.15.0", r"node 'h1': podCIDR '10\.1\.15\.0': .* does not look like"),
        ("10.1.15.0/33", r"node 'h1': podCIDR '10\.1\.15\.0/33': .*prefix length 33"),
        ("10.1.15.7/24", r"node 'h1': podCIDR '10\.1\.15\.7/24': .*host bits are set"),
        ("10.1.1500.0/24", r"node 'h1': podCIDR .* is no IPv4 address"),
    ],
)
async def test_a_node_without_a_useful_podcidr_is_told(
    cidrs: str | None, fault: str, api: ApiServer, options: KubeOptions
) -> None:
    api.add_node("h1", cidrs)
    async with opened(options) as registry:
        with pytest.raises(RegistryError, match=fault) as caught:
            await registry.assigned()
    assert "\n" not in str(caught.value)


async def test_a_node_of_an_old_server_has_one_podcidr(api: ApiServer, options: KubeOptions) -> None:
    api.do(lambda store: store.put_node("h1", {"spec": {"podCIDR": "10.1.15.0/24"}}))
    async with opened(options) as registry:
        assert (await registry.assigned()).key == KEY


async def test_the_condition_that_keeps_pods_away_is_cleared(api: ApiServer, registry: KubeRegistry) -> None:
    api.do(lambda store: store.heartbeat("h1"))
    await registry.announce_up()
    condition = api.do(lambda store: store.condition("h1"))
    assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")
    assert condition["message"] == "Flannel is running on this node"
    assert condition["lastTransitionTime"].endswith("Z")
    assert api.do(lambda store: store.condition("h1", "Ready"))["status"] == "True"


async def test_the_condition_is_left_alone_when_that_is_asked_for(api: ApiServer, options: KubeOptions) -> None:
    api.add_node("h1", "10.1.15.0/24")
    async with opened(replace(options, set_node_network_unavailable=False)) as registry:
        await registry.announce_up()
    assert api.do(lambda store: store.condition("h1"))["status"] == "True"


# Losing it


async def test_a_node_that_was_deleted_is_lost(api: ApiServer, registry: KubeRegistry) -> None:
    entry = await register(registry)
    api.do(lambda store: store.delete_node("h1"))
    with pytest.raises(LeaseLost, match='nodes "h1" not found'):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost):
        await registry.time_left_s(entry)


async def test_a_node_that_came_back_with_another_subnet_is_lost(api: ApiServer, registry: KubeRegistry) -> None:
    entry = await register(registry)
    api.do(lambda store: store.delete_node("h1"))
    api.add_node("h1", "10.1.99.0/24")
    with pytest.raises(LeaseLost, match=r"node 'h1' has another podCIDR now, 10\.1\.99\.0/24"):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    assert (await register(registry)).key == "10.1.99.0-24"


async def test_a_node_that_is_replaced_between_look_and_write_is_not_written(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await registry.assigned()
    patch = registry._client.patch_node_status

    async def replace_first(name: str, body: dict[str, object]) -> KubeNode:
        api.do(lambda store: store.delete_node("h1"))
        api.add_node("h1", "10.1.99.0/24")
        return await patch(name, body)

    monkeypatch.setattr(registry._client, "patch_node_status", replace_first)
    with pytest.raises(RegistryError, match=r"metadata\.uid: field is immutable \(status 422\)"):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    assert api.do(lambda store: store.annotations("h1")) == {}


async def test_two_agents_of_one_node_do_not_chase_each_other(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await register(registry)
    for _ in range(2):
        api.do(lambda store: store.annotate("h1", public_ip="192.0.2.66"))
        if api.count("patch") == 1:  # the first time it may be a person
            entry = await registry.renew(entry, VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match="node 'h1': its annotations were written by somebody else"):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    with pytest.raises(
        RegistryError, match=r"somebody else writes its annotations, now .*192\.0\.2\.66.*another agent"
    ):
        await registry.assigned()
    monkeypatch.setattr(kube, "REWRITE_S", 0.0)  # later
    assert (await register(registry)).value == VALUE


@pytest.mark.parametrize(
    "edit",
    [
        {"kube_subnet_manager": None},
        {"kube_subnet_manager": "no"},
        {"public_ip": "192.0.2.66"},
        {"public_ip": "nonsense"},
        {"public_ip": None, "backend_type": "vxlan", "backend_data": None},
    ],
    ids=["unregistered", "no manager", "another address", "no address", "several"],
)
async def test_annotations_that_a_person_edits_are_written_again_and_the_subnet_is_kept(
    edit: dict[str, str | None], api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The podCIDR is the lease. The watch shows nothing under our key, which makes the keeper renew."""
    entry = await register(registry)
    as_registered = api.do(lambda store: store.annotations("h1"))
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries == {KEY: entry}
        api.do(lambda store: store.annotate("h1", **edit))
        assert (await seen.change()).entries == {KEY: None}
        renewed = await registry.renew(entry, VALUE, LEASE_TTL_S)
        assert await registry.time_left_s(renewed) is None
        assert (await seen.change()).entries == {KEY: renewed}
    assert api.do(lambda store: store.annotations("h1")) == as_registered
    (line,) = [message for message in caplog.messages if "somebody changed its annotations" in message]
    assert all(name.replace("_", "-") in line for name in edit)


async def test_an_overwrite_that_comes_and_goes_takes_effect_at_once(api: ApiServer, registry: KubeRegistry) -> None:
    entry = await register(registry)
    for overwrite, public_ip in (("203.0.113.7", "203.0.113.7"), (None, "192.0.2.1")):
        api.do(partial(Store.annotate, name="h1", public_ip_overwrite=overwrite))
        entry = await registry.renew(entry, VALUE, LEASE_TTL_S)
        assert api.do(lambda store: store.annotations("h1"))["public-ip"] == public_ip
        assert (await registry.list()).entries[KEY] == entry
        assert entry.value == VALUE


async def test_what_kubernetes_hands_out_is_neither_made_nor_deleted(registry: KubeRegistry) -> None:
    entry = await register(registry)
    with pytest.raises(RegistryDenied, match="hands out the subnets"):
        await registry.create(OTHER_KEY, VALUE, LEASE_TTL_S)
    with pytest.raises(RegistryDenied, match="hands out the subnets"):
        await registry.delete(entry)
    with pytest.raises(RegistryDenied, match="ConfigMap"):
        await registry.write_config(b"{}")


# The configuration


async def test_the_configuration_is_a_file_and_may_come_late(options: KubeOptions, tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    async with opened(replace(options, net_config_path=path)) as registry:
        with pytest.raises(
            ConfigMissing, match=f"--net-config-path {path}: there is no such file; mount the ConfigMap"
        ):
            await registry.read_config()
        path.write_text('{"Network": "10.1.0.0/16"}')
        assert json.loads(await registry.read_config()) == {"Network": "10.1.0.0/16"}
    async with opened(replace(options, net_config_path=tmp_path)) as registry:
        with pytest.raises(RegistryDenied, match=f"--net-config-path {tmp_path}: Is a directory"):
            await registry.read_config()


# Other nodes


async def test_only_nodes_with_an_agent_and_a_subnet_are_entries(api: ApiServer, registry: KubeRegistry) -> None:
    api.add_node("h2", "10.1.16.0/24", **PEER)
    api.add_node("no-agent", "10.1.17.0/24")
    api.add_node("agent-gone", "10.1.18.0/24", **{**PEER, "kube_subnet_manager": "false"})
    api.add_node("no-subnet", None, **PEER)
    entries = (await registry.list()).entries
    assert {key: entry.value for key, entry in entries.items()} == {OTHER_KEY: OTHER_VALUE}


async def test_leases_of_other_backends_are_told_as_such(api: ApiServer, registry: KubeRegistry) -> None:
    data = {"backend_type": "vxlan", "backend_data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}'}
    api.add_node("h2", "10.1.16.0/24", **{**PEER, **data, "public_ipv6": "2001:db8::2"})
    assert (await registry.list()).entries[OTHER_KEY].value == (
        b'{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}'
    )


@pytest.mark.parametrize(
    "annotations",
    [{"public_ip": "nowhere"}, {"backend_data": "{"}, {"public_ip": 'a"\n\ud800'}, {"backend_data": "[" * 9999}],
)
async def test_nonsense_is_handed_on_for_the_peer_table_to_ignore(
    annotations: dict[str, str], api: ApiServer, registry: KubeRegistry
) -> None:
    api.add_node("h2", "10.1.16.0/24", **{**PEER, **annotations})
    assert isinstance(json.loads((await registry.list()).entries[OTHER_KEY].value), dict)


async def test_of_several_nodes_with_one_subnet_the_first_counts_but_never_against_us(
    api: ApiServer, registry: KubeRegistry
) -> None:
    ours = await register(registry)
    for name, cidr in (("a", "10.1.15.0/24"), ("n2", "10.1.16.0/24"), ("n1", "10.1.16.0/24"), ("n3", "10.1.16.0/24")):
        api.add_node(name, cidr, **{**PEER, "public_ip": f"name {name}"})
    entries = (await registry.list()).entries
    assert entries[KEY] == ours
    assert b"name n1" in entries[OTHER_KEY].value
    assert {key: (entry.host, entry.rivals) for key, entry in entries.items()} == {
        KEY: ("h1", ("a",)),
        OTHER_KEY: ("n1", ("n2", "n3")),
    }


async def test_a_list_comes_whole_from_the_servers_memory(api: ApiServer, registry: KubeRegistry) -> None:
    for i in range(500):
        api.add_node(f"n{i}", f"10.{i // 250}.{i % 250}.0/24", **PEER)
    assert len((await registry.list()).entries) == 500
    assert [seen.parameters for seen in api.requests] == [{"resourceVersion": "0"}]


async def test_a_list_that_is_not_given_out_whole_comes_in_parts(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.order("list", Fault(refuse=Refused(400, "BadRequest", "resourceVersion 0 is not served")))
    monkeypatch.setattr(kube_client, "PAGE_NODES", 3)
    for i in range(10):
        api.add_node(f"n{i}", f"10.1.{i}.0/24", **PEER)
    assert len((await registry.list()).entries) == 10
    assert api.count("list") == 1 + 4


# Watching


@pytest.fixture
async def seen(api: ApiServer, registry: KubeRegistry) -> AsyncIterator[Watching]:
    api.add_node("h2", "10.1.16.0/24", **PEER)
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries.keys() == {OTHER_KEY}
        yield seen


async def test_an_entry_has_the_name_of_its_node_also_of_one_that_came_in_the_place_of_another(
    api: ApiServer, registry: KubeRegistry
) -> None:
    own = await register(registry)
    assert own.host == "h1"
    api.add_node("h3", "10.1.16.0/24", **PEER)
    api.add_node("h2", "10.1.16.0/24", **PEER)
    async with watching(registry) as seen:
        entries = (await seen.snapshot()).entries
        assert {key: entry.host for key, entry in entries.items()} == {KEY: "h1", OTHER_KEY: "h2"}
        assert entries[KEY] == own
        api.do(lambda store: store.delete_node("h2"))
        (entry,) = (await seen.change()).entries.values()
        assert entry is not None
        assert (entry.host, entry.value) == ("h3", OTHER_VALUE)


async def test_nodes_that_come_change_and_go_are_seen(api: ApiServer, seen: Watching) -> None:
    api.add_node("h3", "10.1.17.0/24")  # no agent yet
    api.do(lambda store: store.annotate("h3", **{**PEER, "public_ip": "192.0.2.3"}))
    (entry,) = (await seen.change()).entries.values()
    assert entry is not None
    assert entry.key == "10.1.17.0-24"
    api.do(lambda store: store.annotate("h3", public_ip="192.0.2.33"))
    (moved,) = (await seen.change()).entries.values()
    assert moved is not None
    assert b"192.0.2.33" in moved.value
    assert moved.revision > entry.revision
    api.do(lambda store: store.delete_node("h3"))
    assert (await seen.change()).entries == {"10.1.17.0-24": None}
    api.do(lambda store: store.annotate("h2", kube_subnet_manager=None))
    assert (await seen.change()).entries == {OTHER_KEY: None}


async def test_another_node_s_claim_on_a_subnet_is_seen_coming_and_going(api: ApiServer, seen: Watching) -> None:
    api.add_node("h3", "10.1.16.0/24", **PEER)
    (shared,) = (await seen.change()).entries.values()
    api.do(lambda store: store.delete_node("h3"))
    (alone,) = (await seen.change()).entries.values()
    assert shared is not None
    assert alone is not None
    assert (shared.host, shared.rivals, alone.host, alone.rivals) == ("h2", ("h3",), "h2", ())
    assert shared.revision == alone.revision  # nothing was written there


async def test_a_node_that_comes_back_with_another_subnet_is_two_changes(api: ApiServer, seen: Watching) -> None:
    api.do(lambda store: store.delete_node("h2"))
    api.add_node("h2", "10.1.20.0/24", **PEER)
    assert (await seen.change()).entries == {OTHER_KEY: None}
    assert (await seen.change()).entries.keys() == {"10.1.20.0-24"}


async def test_heartbeats_are_no_changes(api: ApiServer, seen: Watching) -> None:
    for _ in range(20):
        api.do(lambda store: store.heartbeat("h2"))
    api.do(lambda store: store.delete_node("h2"))
    assert (await seen.change()).entries == {OTHER_KEY: None}  # the first thing that is seen


async def test_what_we_register_is_seen_with_the_revision_that_we_know(
    api: ApiServer, registry: KubeRegistry, seen: Watching
) -> None:
    entry = await register(registry)
    assert (await seen.change()).entries == {KEY: entry}
