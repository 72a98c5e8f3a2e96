"""Agents where one family is off, comes, goes, lacks an address or is told wrong: it costs the other one nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import command_json, command_line, log_of, restart_agents, unanswered, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

CONFIG = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}


def plan(**more: Any) -> Plan:
    return Plan(fresh_name(), **{"hosts": 3, "families": "46", "config": CONFIG, **more})


@pytest.fixture
def trio() -> Iterator[Lab]:
    with Lab(plan()) as lab:
        yield lab


def keys(lab: Lab) -> set[str]:
    return set(json.loads(lab.plan.registry_file.read_text())["subnets"])


def rewrite(lab: Lab, config: dict[str, Any] | None = None, **entries: dict[str, Any]) -> None:
    """Change the registry as a person would, who keeps the rest."""
    if config is not None:
        by_hand(lab).configure(config)
    for key, entry in entries.items():
        by_hand(lab).put(key, json.dumps(entry))


def travels(lab: Lab, version: int) -> None:
    wait_for(f"IPv{version}", lambda: None not in ping_matrix(lab.pods(), 0.5, version).values())


def status_with_one_problem(host: Host) -> dict[str, Any]:
    """Wait until that is all that is wrong: while the hosts meet, on a busy machine, a peer may seem ill."""
    found: list[dict[str, Any]] = []

    def has_one() -> bool:
        found[:] = [host.control("/v1/status")]
        return len(found[0]["problems"]) == 1

    wait_for("one thing is wrong", has_one)
    return found[0]


def peers_by(host: Host) -> dict[str, str]:
    return {row["subnet"]: row["public_ip"] for row in host.control("/v1/peers")}


def test_a_host_without_an_ipv6_address_takes_part_by_ipv4_and_says_what_it_lacks() -> None:
    with Lab(plan(agents=("h1", "h2"))) as lab:
        h1, h2, h3 = lab.hosts
        h3.configure(f"address del {h3.underlay_of(6)}/64 dev eth0")
        h3.start_agent()
        h3.wait_ready()
        h3.attach_pods()
        travels(lab, 4)
        status = status_with_one_problem(h3)
        (lack,) = status["problems"]
        assert lack.startswith("interface eth0 has no IPv6 address: this host takes no part in the overlay by IPv6 ")
        assert (status["ipv6_subnet"], status["public_ipv6"], status["lease"]["key"].count("&")) == (None, None, 0)
        assert "FLANNEL_IPV6" not in h3.subnet_file.read_text()
        wait_for("three peers", lambda: len(peers_by(h1)) == 3)  # both of h2, and one of h3
        assert unanswered([*h1.pods, *h2.pods], version=6) == []
        assert not [line for line in log_of(h1) if "is ignored" in line]


@pytest.mark.parametrize(
    ("key", "public_ips", "counts", "why"),
    [
        ("10.244.199.0-24&fd00:10:244:99::-64", ("192.0.2.99", "bogus"), "10.244.199.0/24", "is no IPv6 address"),
        ("10.244.199.0-24&fd00:10:244:99::-64", ("192.0.2.99", None), "10.244.199.0/24", "has no PublicIPv6"),
        (
            "10.244.199.0-24&fd00:10:244:99::1-64",
            ("192.0.2.99", "2001:db8::99"),
            "10.244.199.0/24",
            "host bits are set",
        ),
        ("10.244.199.0-24&fd00:10:244:99::-64", ("0.0.0.0", "2001:db8::99"), "fd00:10:244:99::/64", "PublicIP 0.0.0.0"),
    ],
)
def test_a_poisoned_part_of_an_entry_costs_that_part_only(
    trio: Lab, key: str, public_ips: tuple[str, str | None], counts: str, why: str
) -> None:
    h1 = trio.hosts[0]
    wait_for("its peers", lambda: len(peers_by(h1)) == 4)
    rewrite(trio, **{key: dict(zip(("PublicIP", "PublicIPv6"), public_ips, strict=True), BackendType="host-gw")})
    wait_for("the good part", lambda: counts in peers_by(h1))
    assert len(peers_by(h1)) == 5
    # A look each second says of the host what stops its packets, too.
    (line,) = [line for line in log_of(h1) if "part is ignored" in line and not line.startswith("degraded: ")]
    assert key in line
    assert why in line
    for version in (4, 6):
        travels(trio, version)


def test_ipv6_that_is_switched_off_and_on_again_leaves_every_host_its_ipv4_subnet(trio: Lab) -> None:
    before = keys(trio)
    v4 = {key.partition("&")[0] for key in before}
    both = json.loads(trio.plan.registry_file.read_text())["config"]
    for config, expected in ((CONFIG, v4), (both, v4)):
        for host in trio.hosts:
            host.stop_agent()
        rewrite(trio, dict(config))
        for host in trio.hosts:
            host.start_agent()
        for host in trio.hosts:
            host.wait_ready()
        assert {key.partition("&")[0] for key in keys(trio)} == expected
        assert len(keys(trio)) == 3
        assert all(("&" in key) == (config is both) for key in keys(trio))
        assert all(("FLANNEL_IPV6_SUBNET" in h.subnet_file.read_text()) == (config is both) for h in trio.hosts)
    answer = command_line(trio.hosts[0], "route", "get", "2001:db8::77").stdout
    assert "outside the overlay network fd00:10:244::/48" in answer


@pytest.mark.parametrize(("nftables", "then"), [(False, False), (True, True), (True, False)])
def test_of_a_family_that_is_switched_off_no_firewall_rule_stays(nftables: bool, then: bool) -> None:
    """In neither dialect, whichever the agent has now: ip6tables' masquerade would go on."""

    def rules_of(host: Host) -> list[str]:
        listed = host.run(["ip6tables-save"]).stdout + host.run(["nft", "list", "ruleset", "ip6"]).stdout
        return [line for line in listed.splitlines() if "FLANNEL" in line or "flannel" in line]

    config = {"Network": str(OVERLAY), "EnableNFTables": nftables}
    with Lab(plan(hosts=1, pods=0, config=config, agent_args=("--ip-masq",))) as lab:
        (host,) = lab.hosts
        assert any("masq" in line for line in rules_of(host))
        host.stop_agent()
        by_hand(lab).configure({"Network": str(OVERLAY), "EnableNFTables": then})
        host.start_agent("--ip-masq")
        host.wait_ready()
        wait_for("they are gone", lambda: rules_of(host) == [])


def test_hosts_of_ipv6_alone_are_as_many_hosts_and_keep_their_subnets() -> None:
    with Lab(plan(families="6", config={"Backend": {"Type": "host-gw"}})) as lab:
        travels(lab, 6)
        before = keys(lab)
        assert len(before) == 3
        assert all(key.startswith("0.0.0.0-0&fd00:10:244:") for key in before)
        restart_agents(lab.hosts)
        assert keys(lab) == before
        status = lab.hosts[0].control("/v1/status")
        assert (status["network"], status["subnet"], status["public_ip"]) == (None, None, None)
        assert (status["ipv6_network"], status["public_ipv6"]) == ("fd00:10:244::/48", "2001:db8::1")
        assert not [
            line for line in lab.hosts[0].subnet_file.read_text().splitlines() if line.startswith("FLANNEL_NET")
        ]


def test_a_reservation_of_one_family_is_taken_as_it_is_and_says_what_it_lacks() -> None:
    with Lab(plan(hosts=2, agents=("h2",))) as lab:
        h1 = lab.hosts[0]
        rewrite(lab, **{"10.244.199.0-24": {"PublicIP": "192.0.2.1", "BackendType": "host-gw"}})
        h1.start_agent()
        h1.wait_ready()
        h1.attach_pods()
        travels(lab, 4)
        status = status_with_one_problem(h1)
        assert (status["subnet"], status["ipv6_subnet"], status["lease"]["reserved"]) == ("10.244.199.0/24", None, True)
        (lack,) = status["problems"]
        assert lack.startswith("our entry 10.244.199.0-24 has no IPv6 part: this host takes no part in the overlay")


def test_peers_are_asked_by_echoes_of_their_own_family(trio: Lab) -> None:
    h1 = trio.hosts[0]
    wait_for("its peers", lambda: len(peers_by(h1)) == 4)
    for version in (4, 6):
        travels(trio, version)

    def echoes() -> list[tuple[bool, bool]]:
        rows = command_json(h1, "peers", "--probe")
        return [(row["echo"]["answered"], ":" in row["subnet"]) for row in rows]

    wait_for("each answers by its family", lambda: echoes() == [(True, v6) for v6 in (0, 0, 1, 1)])
