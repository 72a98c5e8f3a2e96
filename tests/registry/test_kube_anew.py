"""Our node is deleted and made again with the same podCIDR: as far as pods are concerned it is a fresh one."""

from __future__ import annotations

from flannel_udp.model import LEASE_TTL_S
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer
from tests.kube_api.store import Store
from tests.registry.test_kube import KEY, PEER, VALUE, api, options, register, registry

__all__ = ["api", "options", "registry"]


def make_anew(api: ApiServer, **annotations: str) -> None:
    """Have our node deleted and made again at once, with its podCIDR: pods are kept off the new one."""

    def replace_it(store: Store) -> None:
        store.delete_node("h1")
        store.add_node("h1", "10.1.15.0/24", **annotations)

    api.do(replace_it)
    assert api.do(lambda store: store.condition("h1"))["status"] == "True"


async def test_the_condition_of_a_node_that_came_in_the_place_of_ours_is_cleared_too(
    api: ApiServer, registry: KubeRegistry
) -> None:
    entry = await register(registry)
    await registry.announce_up()
    make_anew(api)
    entry = await registry.renew(entry, VALUE, LEASE_TTL_S)
    assert api.do(lambda store: store.condition("h1"))["reason"] == "FlannelIsUp"
    before = api.count("patch")
    await registry.renew(entry, VALUE, LEASE_TTL_S)
    assert api.count("patch") == before
    # Who has lost the lease carries nothing, and says so himself once he does.
    make_anew(api)
    await register(registry)
    assert api.do(lambda store: store.condition("h1"))["status"] == "True"


async def test_a_new_node_that_has_the_annotations_of_the_former_is_noticed_by_a_list(
    api: ApiServer, registry: KubeRegistry
) -> None:
    entry = await register(registry)
    await registry.announce_up()
    make_anew(api, **{**PEER, "backend_type": "", "backend_data": "null", "public_ip": "192.0.2.1"})
    assert KEY not in (await registry.list()).entries  # which makes our lease's keeper renew it
    assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    assert api.do(lambda store: store.condition("h1"))["status"] == "False"
    assert (await registry.list()).entries[KEY] == entry
