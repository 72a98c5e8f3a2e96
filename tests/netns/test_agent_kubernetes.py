"""Agents whose registry is Kubernetes: pods talk, nodes come, change and go, and what is wrong is said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, OVERLAY_V6, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.kube_api.manifest import RULES, find
from tests.kube_api.server import ApiServer
from tests.kube_api.store import Store
from tests.support.agents import (
    command_json,
    command_line,
    peers_of,
    remains_of,
    subnet_of,
    unanswered,
    wait_for,
    wait_for_peers,
    wait_for_pings,
)
from tests.support.kernel_state import ours_of
from tests.support.kube_cluster import PORT, STREAM, Cluster, cluster
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as pair:
        yield pair


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, hosts=1) as one:
        yield one


def test_host_gw_nodes_say_so_and_have_the_routes_that_flanneld_would_make(tmp_path: Path) -> None:
    """Kubernetes' subnets have no end, so nothing has to take the routes away: they have no source of ours."""
    with cluster(tmp_path, backend="host-gw") as pair, ExitStack() as running:
        agents = [running.enter_context(pair.agent(host)) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        assert unanswered(pair.lab.pods()) == []
        for number, host in enumerate(pair.lab.hosts):
            assert annotations_of(pair, host) == {
                "kube-subnet-manager": "true",
                "backend-type": "host-gw",
                "backend-data": "null",
                "public-ip": str(host.underlay),
            }
            other = pair.lab.hosts[1 - number].underlay
            routes = [line.strip() for line in host.run(["ip", "route", "show", "proto", "82"]).stdout.splitlines()]
            assert routes == [f"10.244.{1 - number}.0/24 via {other} dev eth0"]
            assert "lo:flannel" not in host.run(["ip", "address", "show", "lo"]).stdout
        pair.api.add_node("h9", "10.244.9.0/24", kube_subnet_manager="true", public_ip="192.0.2.9", backend_type="")
        agents[0].wait_for_line("entry '10.244.9.0-24' is ignored: its backend is '', ours is host-gw")


@contextmanager
def dual_stack(tmp_path: Path, backend: str) -> Iterator[Cluster]:
    """Have two nodes of both families, whose podCIDRs are in one order and in the other."""
    net_conf = tmp_path / "net-conf.json"
    both = {"Network": str(OVERLAY), "EnableIPv6": True, "IPv6Network": str(OVERLAY_V6)}
    net_conf.write_text(json.dumps({**both, "Backend": {"Type": backend}}))
    with Lab(Plan(fresh_name(), agents=(), families="46")) as lab, lab.net.socket(*STREAM) as listener:
        listener.bind((str(UNDERLAY_GATEWAY), PORT))
        listener.listen()
        with ApiServer(listener, rules=RULES) as api:
            for number, host in enumerate(lab.hosts):
                cidrs = [f"10.244.{number}.0/24", f"fd00:10:244:{number + 1}::/64"]
                api.add_node(host.name, ",".join(cidrs[::-1] if number else cidrs))
            yield Cluster(lab, api, net_conf)


@pytest.mark.parametrize("backend", ["udp", "host-gw", "vxlan"])
def test_dual_stack_nodes_carry_both_families_whatever_the_order_of_their_podcidrs(
    tmp_path: Path, backend: str
) -> None:
    with dual_stack(tmp_path, backend) as pair, ExitStack() as running:
        agents = [running.enter_context(pair.agent(host)) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_pings(pair.lab, (4, 6))
        for host in pair.lab.hosts:
            said = annotations_of(pair, host)
            assert (said["public-ip"], said["public-ipv6"]) == (str(host.underlay), str(host.underlay_of(6)))
            assert (said["backend-v6-data"] == "null") == (backend != "vxlan")


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_a_node_whose_ipv6_address_comes_late_says_it_then_and_has_the_podcidr_that_it_was_given(
    tmp_path: Path, backend: str
) -> None:
    with dual_stack(tmp_path, backend) as pair, ExitStack() as running:
        h1, h2 = pair.lab.hosts
        h2.configure(f"address del {h2.underlay_of(6)}/64 dev eth0")
        for host in (h1, h2):
            running.enter_context(pair.agent(host)).wait_ready()
        assert (h2.subnet_of(6), annotations_of(pair, h2).get("public-ipv6")) == (None, None)
        h2.configure(f"address add {h2.underlay_of(6)}/64 dev eth0 nodad")
        wait_for("its subnet", lambda: h2.subnet_of(6) is not None)
        assert str(h2.subnet_of(6)) == "fd00:10:244:2::/64"
        assert annotations_of(pair, h2)["public-ipv6"] == str(h2.underlay_of(6))
        for host in (h1, h2):
            host.attach_pods()
        wait_for_pings(pair.lab, (4, 6))
        assert h2.control("/v1/status")["problems"] == []


@pytest.mark.parametrize("cidrs", ["10.244.0.0/24", "10.244.0.0/24,fd00:99::/64"], ids=["none", "outside"])
def test_a_node_of_before_dual_stack_takes_part_by_ipv4_and_says_how_it_gets_a_podcidr_of_ipv6(
    tmp_path: Path, cidrs: str
) -> None:
    net_conf = tmp_path / "net-conf.json"
    net_conf.write_text(json.dumps({"Network": str(OVERLAY), "EnableIPv6": True, "IPv6Network": str(OVERLAY_V6)}))
    with Lab(Plan(fresh_name(), hosts=1, agents=(), families="46")) as lab, lab.net.socket(*STREAM) as listener:
        listener.bind((str(UNDERLAY_GATEWAY), PORT))
        listener.listen()
        with ApiServer(listener, rules=RULES) as api:
            host = lab.hosts[0]
            api.add_node(host.name, cidrs)
            with Cluster(lab, api, net_conf).agent(host) as agent:
                agent.wait_ready()
                (lack,) = host.control("/v1/status")["problems"]
                assert lack == (
                    f"our node has no podCIDR in the overlay network {OVERLAY_V6}: this host takes no part in the "
                    "overlay by IPv6: it is given to new nodes only: delete the node, and start its kubelet again"
                )


def test_pods_reach_each_other_while_nodes_come_change_and_go(pair: Cluster) -> None:
    h1, h2 = pair.lab.hosts
    with ExitStack() as running:
        agents = [running.enter_context(pair.agent(host)) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        assert unanswered(pair.lab.pods()) == []

        # The first subnet of the network too, which flannel never picks by itself: Kubernetes may.
        assert [str(subnet_of(host)) for host in pair.lab.hosts] == ["10.244.0.0/24", "10.244.1.0/24"]
        assert "kept our reserved subnet 10.244.0.0/24" in agents[0].said()
        for host in pair.lab.hosts:
            agents[0].wait_for_line("told Kubernetes that the network of node h1 is available")
            wait_for("the condition", partial(is_available, pair, host))
            assert annotations_of(pair, host) == {
                "kube-subnet-manager": "true",
                "backend-type": "",
                "backend-data": "null",
                "public-ip": str(host.underlay),
            }
        assert h1.control("/v1/status")["registry"] == "kubernetes"

        pair.api.add_node("h9", "10.244.9.0/24", kube_subnet_manager="true", public_ip="192.0.2.9")
        wait_for("h9 is a peer", lambda: peers_of(h1).get("10.244.9.0/24") == "192.0.2.9")
        (line,) = command_line(h1, "peers", "h9").stdout.splitlines()[1:]
        assert line.split()[:3] == ["h9", "10.244.9.0/24", "192.0.2.9"]
        pair.api.do(lambda store: store.annotate("h9", public_ip="192.0.2.99"))
        wait_for("h9 has moved", lambda: peers_of(h1).get("10.244.9.0/24") == "192.0.2.99")
        vxlan = {"kube_subnet_manager": "true", "public_ip": "192.0.2.8", "backend_type": "vxlan"}
        pair.api.add_node("h8", "10.244.8.0/24", **vxlan)
        agents[0].wait_for_line("entry '10.244.8.0-24' is ignored: its backend is 'vxlan', ours is udp")
        pair.api.do(lambda store: store.delete_node("h9"))
        wait_for("h9 is gone", lambda: "10.244.9.0/24" not in peers_of(h1))

        # The API server goes and comes back without its history; traffic never stops.
        pair.api.stop()
        pair.api.do(lambda store: store.forget())
        assert unanswered(pair.lab.pods()) == []
        pair.api.start()
        agents[0].wait_for_line("watching the subnets: works again")
        pair.api.add_node("h7", "10.244.7.0/24", kube_subnet_manager="true", public_ip="192.0.2.7")
        wait_for("h7 is a peer", lambda: "10.244.7.0/24" in peers_of(h1))
        assert unanswered(pair.lab.pods()) == []

        assert agents[0].stop() == 0
    assert {seen.verb for seen in pair.api.requests} == {"get", "list", "watch", "patch"}
    assert "flannel0" not in remains_of(h2)


def test_nodes_reach_each_other_by_host_gw_and_say_so(tmp_path: Path) -> None:
    with cluster(tmp_path, backend="host-gw") as pair, ExitStack() as running:
        h1, h2 = pair.lab.hosts
        agents = [running.enter_context(pair.agent(host)) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        wait_for("traffic", lambda: None not in ping_matrix(pair.lab.pods(), timeout_s=0.5).values())
        assert annotations_of(pair, h1) == {
            "kube-subnet-manager": "true",
            "backend-type": "host-gw",
            "backend-data": "null",
            "public-ip": str(h1.underlay),
        }
        # A node's subnet has no end, so its routes need none: they are flannel's but for the protocol number.
        assert ours_of(h1) == [f"{subnet_of(h2)} via {h2.underlay} dev eth0"]
        assert agents[1].stop() == 0  # it would write the annotation again
        pair.api.do(lambda store: store.annotate("h2", backend_type="vxlan"))
        agents[0].wait_for_line("entry '10.244.1.0-24' is ignored: its backend is 'vxlan', ours is host-gw")
        wait_for("its route is gone", lambda: ours_of(h1) == [])
        assert [agent.stop() for agent in agents] == [0, 0]


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_vxlan_nodes_say_where_frames_go_as_flanneld_does_and_find_it_again(tmp_path: Path, datapath: str) -> None:
    with cluster(tmp_path, backend="vxlan") as pair, ExitStack() as running:
        h1 = pair.lab.hosts[0]
        agents = [running.enter_context(pair.agent(host, f"--datapath={datapath}")) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        wait_for("traffic", lambda: None not in ping_matrix(pair.lab.pods(), timeout_s=0.5).values())
        before = {host.name: annotations_of(pair, host) for host in pair.lab.hosts}
        for host in pair.lab.hosts:
            mac = json.loads(before[host.name]["backend-data"])["VtepMAC"]
            assert before[host.name] == {
                "kube-subnet-manager": "true",
                "backend-type": "vxlan",
                "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
                "public-ip": str(host.underlay),
            }
        # As after a reboot: the node still says it, the host has no device.
        assert agents[0].stop() == 0
        h1.run(["ip", "link", "del", "flannel.1"], check=False)
        again = running.enter_context(pair.agent(h1, f"--datapath={datapath}"))
        again.wait_ready()
        assert annotations_of(pair, h1) == before["h1"]
        wait_for("traffic", lambda: None not in ping_matrix(pair.lab.pods(), timeout_s=0.5).values())
        assert [again.stop(), agents[1].stop()] == [0, 0]


def test_ipip_nodes_say_so_as_flanneld_does(tmp_path: Path) -> None:
    with cluster(tmp_path, backend="ipip") as pair, ExitStack() as running:
        agents = [running.enter_context(pair.agent(host, "--datapath=userspace")) for host in pair.lab.hosts]
        for agent in agents:
            agent.wait_ready()
            agent.host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        wait_for("traffic", lambda: None not in ping_matrix(pair.lab.pods(), timeout_s=0.5).values())
        for host in pair.lab.hosts:
            assert annotations_of(pair, host) == {
                "kube-subnet-manager": "true",
                "backend-type": "ipip",
                "backend-data": "null",
                "public-ip": str(host.underlay),
            }
        assert [agent.stop() for agent in agents] == [0, 0]


def test_a_take_over_keeps_a_lease_whose_public_ip_an_administrator_has_overwritten(one: Cluster) -> None:
    (h1,) = one.lab.hosts
    one.api.do(lambda store: store.annotate("h1", public_ip_overwrite="203.0.113.7"))
    with one.agent(h1) as old:
        old.wait_ready()
        wait_for("it is overwritten", lambda: annotations_of(one, h1)["public-ip"] == "203.0.113.7")
        with one.agent(h1, "--takeover") as new:
            new.wait_for_line(f"took over from process {old.process.pid}")
            assert old.exit_code() == 0
            new.wait_ready()
            new.wait_for_line("told Kubernetes that the network of node h1 is available")
            assert not [line for line in new.said() if "lost our subnet" in line]
            assert (str(subnet_of(h1)), new.stop()) == ("10.244.0.0/24", 0)


def annotations_of(cluster: Cluster, host: Host) -> dict[str, str]:
    return cluster.api.do(lambda store: store.annotations(host.name))


def is_available(cluster: Cluster, host: Host) -> bool:
    return condition(cluster, host)["status"] == "False"


def condition(cluster: Cluster, host: Host) -> dict[str, str]:
    return cluster.api.do(lambda store: store.condition(host.name))


def test_the_capabilities_and_arguments_of_the_manifests_container_are_enough(pair: Cluster) -> None:
    (container,) = find("DaemonSet")["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["allowPrivilegeEscalation"] is False
    caps = ",".join(["-all", *(f"+{name.lower()}" for name in context["capabilities"]["add"])])
    as_in_the_container = ("setpriv", "--no-new-privs", f"--bounding-set={caps}", f"--inh-caps={caps}")
    arguments = [argument for argument in container["args"] if argument != "--kube-subnet-mgr"]
    with ExitStack() as running:
        for host in pair.lab.hosts:
            agent = running.enter_context(pair.agent(host, *arguments, wrapper=as_in_the_container))
            agent.wait_ready()
            agent.wait_for_line("kept CAP_NET_ADMIN, CAP_NET_RAW and gave up all other capabilities")
            host.attach_pods()
        wait_for_peers(pair.lab.hosts)
        h1 = pair.lab.hosts[0]
        assert unanswered(pair.lab.pods()) == []
        # What it makes anew while it runs needs the same few.
        h1.configure("link del flannel0")
        h1.run(["iptables", "-w", "-t", "nat", "-F", "POSTROUTING"])
        wait_for("pods reach each other", lambda: None not in ping_matrix(pair.lab.pods()).values())
        wait_for(
            "the rules are back",
            lambda: "FLANNEL" in h1.run(["iptables", "-w", "-t", "nat", "-S", "POSTROUTING"]).stdout,
        )
        assert agent.stop() == 0


def test_a_node_that_comes_back_with_another_subnet_takes_that(one: Cluster) -> None:
    (host,) = one.lab.hosts
    with one.agent(host) as agent:
        agent.wait_ready()
        one.api.do(lambda store: store.delete_node("h1"))
        lost = agent.wait_for_line("lost our subnet 10.244.0.0/24")
        assert lost.endswith("forwarding stopped")
        agent.wait_for_line('acquiring a subnet failed: Kubernetes at http://192.0.2.254:6443: nodes "h1" not found')
        one.api.add_node("h1", "10.244.77.0/24")
        agent.wait_for_line("kept our reserved subnet 10.244.77.0/24")
        wait_for("the new subnet is in subnet.env", lambda: str(host.subnet) == "10.244.77.0/24")
        assert agent.stop() == 0


def test_a_node_that_is_made_anew_with_its_subnet_is_available_again_and_no_traffic_stops(one: Cluster) -> None:
    (host,) = one.lab.hosts
    with one.agent(host) as agent:
        agent.wait_ready()
        agent.wait_for_line("told Kubernetes that the network of node h1 is available")

        def make_anew(store: Store) -> str:
            store.delete_node("h1")
            store.add_node("h1", "10.244.0.0/24")
            return str(store.condition("h1")["status"])

        assert one.api.do(make_anew) == "True"  # not available
        wait_for("it is available again", lambda: is_available(one, host))
        assert annotations_of(one, host)["kube-subnet-manager"] == "true"
        assert not [line for line in agent.said() if "lost our subnet" in line]
        assert host.is_ready()


def test_who_says_again_that_our_network_is_unavailable_is_named(one: Cluster) -> None:
    (host,) = one.lab.hosts
    with one.agent(host) as agent:
        agent.wait_for_line("told Kubernetes that the network of node h1 is available")
        again = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
        one.api.do(lambda store: store.change_node("h1", {"status": {"conditions": [again]}}))
        agent.wait_for_line("degraded: Kubernetes puts no pods on this node: NetworkUnavailable is true again (NoRou")
        assert host.control("/v1/status")["degraded"] == ["node"]


@pytest.mark.parametrize(
    ("cidr", "line"),
    [
        (None, "node 'h1' has no podCIDR: run kube-controller-manager with --allocate-node-cidrs"),
        ("10.9.1.0/24", "10.9.1.0/24 is outside the overlay network 10.244.0.0/16"),
        ("10.244.0.0/16", "10.244.0.0/16 is as wide as the overlay network 10.244.0.0/16 or wider: make Network wider"),
    ],
)
def test_a_subnet_of_no_use_is_said_once_and_waited_out(cidr: str | None, line: str, one: Cluster) -> None:
    (host,) = one.lab.hosts
    one.api.do(lambda store: store.delete_node("h1"))
    one.api.add_node("h1", cidr)
    with one.agent(host) as agent:
        agent.wait_for_line(line)
        wait_for("another try", lambda: one.api.count("get") > 1)
        assert sum(line in said for said in agent.said()) == 1
        assert not host.subnet_file.exists()
        assert not is_available(one, host)
        one.api.do(lambda store: store.delete_node("h1"))
        one.api.add_node("h1", "10.244.5.0/26")  # of any length: SubnetLen means nothing here
        agent.wait_ready()
        assert str(host.subnet) == "10.244.5.0/26"


def test_nodes_with_one_podcidr_are_named_on_every_host_until_one_is_deleted(pair: Cluster) -> None:
    h1, h2 = pair.lab.hosts
    mend = "kubectl get nodes, and delete the stale one"
    own = f"node stale has our podCIDR 10.244.1.0/24, too: what is meant for our pods may go there: {mend}"
    others = f"nodes h2 and stale have one podCIDR, 10.244.1.0/24: packets for it go to h2 alone: {mend}"
    with pair.agent(h1) as first, pair.agent(h2) as second:
        for agent in (first, second):
            agent.wait_ready()
        pair.api.add_node("stale", "10.244.1.0/24", kube_subnet_manager="true", public_ip="192.0.2.66")
        for agent, said, kind in ((first, others, "peers"), (second, own, "identity")):
            agent.wait_for_line(f"degraded: {said}")
            status = agent.host.control("/v1/status")
            assert (status["problems"], status["degraded"]) == ([said], [kind])
            row = {"question": "agent", "ok": False, "what": said.removesuffix(f": {mend}"), "mend": mend}
            assert row in command_json(agent.host, "doctor")
        pair.api.do(lambda store: store.delete_node("stale"))
        first.wait_for_line(f"no longer degraded: {others}")
        second.wait_for_line(f"no longer degraded: {own}")
        assert len([line for agent in (first, second) for line in agent.said() if "podCIDR" in line]) == 4


def test_a_node_with_our_address_is_named_until_it_is_deleted(one: Cluster) -> None:
    (host,) = one.lab.hosts
    with one.agent(host) as agent:
        agent.wait_ready()
        one.api.add_node("stale", "10.244.9.0/24", kube_subnet_manager="true", public_ip=str(host.underlay))
        wait_for("it is degraded", lambda: host.control("/v1/status")["degraded"] == ["identity"])
        (problem,) = host.control("/v1/status")["problems"]
        assert problem.startswith(f"node stale has 10.244.9.0/24 under our address {host.underlay}, ")
        one.api.do(lambda store: store.delete_node("stale"))
        wait_for("it is well", lambda: host.control("/v1/status")["degraded"] == [])


def test_what_rbac_forbids_is_said_and_waited_out(one: Cluster) -> None:
    (host,) = one.lab.hosts
    one.api.rules = []
    with one.agent(host) as agent:
        agent.wait_for_line(
            'acquiring a subnet failed: Kubernetes at http://192.0.2.254:6443: forbidden (nodes "h1" is f'
        )
        agent.wait_for_line(
            "watching the subnets failed: Kubernetes at http://192.0.2.254:6443: forbidden (nodes is forb"
        )
        one.api.rules = RULES
        agent.wait_ready()


def test_annotations_that_a_person_edits_stop_no_traffic(pair: Cluster) -> None:
    h1, h2 = pair.lab.hosts
    with pair.agent(h1) as agent, pair.agent(h2) as other:
        for started in (agent, other):
            started.wait_ready()
            started.host.attach_pods()
        wait_for("pods reach each other", lambda: None not in ping_matrix(pair.lab.pods()).values())
        as_registered = annotations_of(pair, h1)
        for edit in ({"kube_subnet_manager": None}, {"public_ip": "192.0.2.66"}):
            pair.api.do(partial(Store.annotate, name="h1", **edit))
            wait_for("they are written again", lambda: annotations_of(pair, h1) == as_registered)
        wait_for("pods reach each other", lambda: None not in ping_matrix(pair.lab.pods()).values())
        assert h1.is_ready()
        assert not [line for line in agent.said() if "lost our subnet" in line]
        assert len([line for line in agent.said() if "somebody changed its annotations" in line]) == 2


def test_a_role_that_may_list_and_not_watch_is_one_line_and_few_lists(one: Cluster) -> None:
    (host,) = one.lab.hosts
    one.api.rules = [dict(rule, verbs=[verb for verb in rule["verbs"] if verb != "watch"]) for rule in RULES]
    with one.agent(host) as agent:
        agent.wait_ready()
        before = one.api.count("list")
        time.sleep(10)  # a list a second before, now after 1, 2, 4 and 8 s
        assert one.api.count("list") - before <= 4
        assert len([line for line in agent.said() if "watching the subnets" in line]) == 1
        assert host.control("/v1/status")["degraded"] == ["registry"]
        one.api.rules = RULES


def test_a_net_conf_that_is_not_there_is_waited_for(one: Cluster, tmp_path: Path) -> None:
    (host,) = one.lab.hosts
    path = tmp_path / "net-conf.json"
    content = path.read_text()
    path.unlink()
    with one.agent(host) as agent:
        agent.wait_for_line(f"--net-config-path {path}: there is no such file; mount the ConfigMap there")
        path.write_text(content)
        agent.wait_ready()


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        ((), {"NODE_NAME": ""}, "--kube-subnet-mgr: which node is this? Set NODE_NAME"),
        (("--kube-api-url=api:6443",), {}, "--kube-api-url: 'api:6443' is not a URL"),
        (
            ("--kube-annotation-prefix=Flannel",),
            {},
            "--kube-annotation-prefix: 'Flannel' is not a lower-case domain name",
        ),
    ],
)
def test_wrong_use_ends_with_one_line_and_exit_code_2(
    arguments: tuple[str, ...], environment: dict[str, str], line: str, one: Cluster
) -> None:
    (host,) = one.lab.hosts
    with one.agent(host, *arguments, **environment) as agent:
        assert agent.exit_code() == 2
        assert sum(line in said for said in agent.said()) == 1
        assert not any("Traceback" in said for said in agent.said())
    assert "flannel0" not in remains_of(host)
