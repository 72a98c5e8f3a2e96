"""A lab of two hosts with our agent and an etcd of one or three members, each on a machine of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from flannel_udp.errors import FlannelError
from flannel_udp.lab.etcd_server import EtcdServer, start_cluster
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import ETCD_PORT, Plan
from tests.support.agents import peers_of, subnet_of, wait_for_peers
from tests.support.by_hand import ETCDCTL_S, PREFIX, etcdctl_command, kept_alive
from tests.support.flow import Flow
from tests.support.labs import fresh_name
from tests.support.patience import PATIENCE_S

T = TypeVar("T")

NETWORK = '{"Network":"10.244.0.0/16"}'
PASSWORD = "a-secret-of-the-test"  # noqa: S105 - of an etcd that lives for seconds
TRY_S = 1
"""How long etcdctl waits for a member that may be one of those that have failed; it is asked again."""
INTERVAL_S = 0.002
"""Between two packets of a flow: 500 a second each way."""


def retried(call: Callable[[], T]) -> T:
    """Return what `call` returns as soon as etcd does not refuse it any more."""
    for _ in range(200):
        try:
            return call()
        except FlannelError as refused:
            reason = refused
            time.sleep(0.1)
    raise AssertionError(f"etcd goes on to refuse it: {reason}")


class Member:
    """One member of the cluster: an etcd on a host of the lab."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.host = host
        self.user = ""
        self.server = EtcdServer(
            host.state / "etcd",
            name=host.name,
            address=str(host.underlay),
            client_port=ETCD_PORT,
            peer_port=ETCD_PORT + 1,
            command=("ip", "netns", "exec", host.namespace, "etcd"),
            arguments=arguments,
        )

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.server.pid, number)

    def wipe(self) -> None:
        """Remove its data: what an operator does who sets up a new disk."""
        shutil.rmtree(self.host.state / "etcd" / self.server.name)

    def is_leader(self) -> bool:
        try:
            said = self.etcdctl("endpoint", "status", "-w", "json", timeout_s=TRY_S)
        except FlannelError:
            return False
        (status,) = json.loads(said)
        # Without a leader, during an election, the field is left out.
        return bool(status["Status"].get("leader") == status["Status"]["header"]["member_id"])

    def etcdctl(self, *arguments: str, stdin: str = "", timeout_s: int = ETCDCTL_S) -> str:
        """Run etcd's own client against this member."""
        return self.host.run(self.command(*arguments, timeout_s=timeout_s), stdin=stdin, timeout_s=PATIENCE_S).stdout

    def command(self, *arguments: str, timeout_s: int = ETCDCTL_S) -> list[str]:
        """Return how to run it; `timeout_s` as of `etcdctl_command`."""
        user = [f"--user={self.user}:{PASSWORD}"] if self.user else []
        return etcdctl_command(self.server.endpoint, *user, *arguments, timeout_s=timeout_s)

    def replace(self, former: Member, others: Sequence[Member]) -> None:
        """Join the cluster of `others` in place of a former member, as an operator does."""
        known = json.loads(others[0].etcdctl("member", "list", "-w", "json"))["members"]
        (number,) = [member["ID"] for member in known if member["name"] == former.server.name]
        others[0].etcdctl("member", "remove", f"{number:x}")
        retried(lambda: others[0].etcdctl("member", "add", self.server.name, f"--peer-urls={self.server.peer_url}"))
        self.server.spawn([self.server, *(other.server for other in others)])
        self.server.wait_ready()

    def enable_auth(self, user: str) -> None:
        """Let only `user` in from now on."""
        self.etcdctl("user", "add", f"{user}:{PASSWORD}")
        self.etcdctl("user", "grant-role", user, "root")
        self.etcdctl("auth", "enable")
        self.user = user


class Cluster:
    """The lab, its two hosts with agents, and the members; `spare` hosts wait for further ones."""

    def __init__(self, lab: Lab, members: Sequence[Member]) -> None:
        self.lab = lab
        self.spare = lab.hosts[2 + len(members) :]
        self.members = list(members)
        self.h1, self.h2 = lab.hosts[:2]
        self._marks = 0
        self._agent_args: list[str] = []

    def flows(self) -> tuple[Flow, Flow]:
        """Return traffic there and back between the pods of h1 and h2."""
        there, back = (self.h1.pods[0], self.h2.pods[0]), (self.h2.pods[0], self.h1.pods[0])
        return Flow(*there, interval_s=INTERVAL_S), Flow(*back, interval_s=INTERVAL_S)

    def mark(self, member: Member, timeout_s: int = ETCDCTL_S) -> str:
        """Write a peer that nobody has yet, and return its subnet: whoever knows it has converged."""
        self._marks += 1
        subnet = f"10.244.{200 + self._marks % 50}.0"
        address = f"192.0.2.{100 + self._marks % 100}"
        member.etcdctl("put", f"{PREFIX}/subnets/{subnet}-24", f'{{"PublicIP":"{address}"}}', timeout_s=timeout_s)
        return f"{subnet}/24 {address}"

    def write(self, member: Member) -> str:
        """Have `mark` written as soon as the member takes a write again."""
        return retried(lambda: self.mark(member, timeout_s=TRY_S))

    def knows(self, host: Host, mark: str) -> bool:
        subnet, address = mark.split()
        return peers_of(host).get(subnet) == address

    def both_know(self, mark: str) -> bool:
        return self.knows(self.h1, mark) and self.knows(self.h2, mark)

    def start_agents(self, first: Member) -> None:
        """Start both agents, or start them again, so that they use the member `first` for as long as it answers."""
        members = [first, *(member for member in self.members if member is not first)]
        arguments = ["--registry=etcd", "--etcd-endpoints", ",".join(member.server.endpoint for member in members)]
        if first.user:
            arguments += [f"--etcd-username={first.user}", f"--etcd-password={PASSWORD}"]
        self._agent_args = arguments
        hosts = (self.h1, self.h2)
        with ExitStack() as opened:
            for host in hosts:
                if host.agent_pid() is not None:
                    host.stop_agent()
                for member in members[1:]:
                    opened.enter_context(unreachable(host, member))
                host.start_agent(*arguments)
            for host in hosts:
                host.wait_ready()
            wait_for_peers(hosts)

    def restart_agent(self, host: Host) -> None:
        """End the host's agent and start it again, as at first."""
        host.stop_agent()
        host.start_agent(*self._agent_args)

    def shorten_lease(self, host: Host, ttl_s: int) -> None:
        """Start the host's agent again with its subnet under a lease of this life, which its renewals do not change."""
        host.stop_agent()
        member = self.members[0]
        lease = member.etcdctl("lease", "grant", str(ttl_s)).split()[1]  # lease 694d7b… granted with TTL(20s)
        member.etcdctl("put", f"--lease={lease}", key_of(host), f'{{"PublicIP":"{host.underlay}"}}')
        with kept_alive(member.host, member.command("lease", "keep-alive", lease)):
            host.start_agent(*self._agent_args)
            host.wait_ready()
        wait_for_peers((self.h1, self.h2))

    def leader(self) -> Member:
        for _ in range(100):
            for member in self.members:
                if member.is_leader():
                    return member
            time.sleep(0.1)
        raise AssertionError("the cluster has no leader")


@contextmanager
def unreachable(host: Host, member: Member) -> Iterator[None]:
    """Keep the host from asking a member, which looks like one that does not run."""
    address, _, port = member.server.endpoint.removeprefix("http://").rpartition(":")
    rule = ["OUTPUT", "-d", address, "-p", "tcp", "--dport", port, "-j", "REJECT", "--reject-with", "tcp-reset"]
    host.run(["iptables", "-w", "-A", *rule])
    try:
        yield
    finally:
        host.run(["iptables", "-w", "-D", *rule])


def key_of(host: Host) -> str:
    """Return the key of the host's subnet."""
    return f"{PREFIX}/subnets/{str(subnet_of(host)).replace('/', '-')}"


@contextmanager
def cluster(
    n_members: int, *arguments: str, config: str = NETWORK, user: str = "", spare: int = 0
) -> Iterator[Cluster]:
    """Bring up h1 and h2 with agents and pods, and etcd on the hosts after them; with a `user`, for that one only."""
    with Lab(Plan(fresh_name(), hosts=2 + n_members + spare, agents=())) as lab:
        members = [Member(host, *arguments) for host in lab.hosts[2 : 2 + n_members]]
        made = Cluster(lab, members)
        try:
            start_cluster([member.server for member in members])
            members[0].etcdctl("put", f"{PREFIX}/config", config)
            if user:
                members[0].enable_auth(user)
            made.start_agents(members[0])
            for host in lab.hosts[:2]:
                host.attach_pods()
            yield made
        finally:
            for member in made.members:
                member.server.stop()


def flows(lab: Lab) -> tuple[Flow, Flow]:
    """Return what runs between the two pods of a lab, each way."""
    p1, p2 = lab.pods()
    return Flow(p1, p2, interval_s=INTERVAL_S), Flow(p2, p1, interval_s=INTERVAL_S)
