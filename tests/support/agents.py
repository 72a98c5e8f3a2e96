"""What the end-to-end tests ask of a running agent, and agents started by hand where the start is the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network
from types import TracebackType
from typing import Any, Self

from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import is_readable, wait_until, write_sysctls
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host, Pod
from flannel_udp.lab.probe import ping_matrix
from flannel_udp.model import Address
from tests.support.patience import PATIENCE_S

_PATIENT = """
import sys
from flannel_udp.agent import agent, ending
from flannel_udp.cli.main import main
ending.CLEAN_TIMEOUT_S = agent.END_TIMEOUT_S = 60.0
sys.exit(main())
"""
WITH_TIME_TO_CLEAN_UP = ("-c", _PATIENT)
"""What `Agent` runs as its `program` where the promise is that its end leaves nothing.

An agent leaves what it could not take away within 0.7 s, three runs of iptables, say; on a machine that is very busy
one of them may take as long.
"""


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> float:
    """Wait until the condition holds and return how many seconds that took; it is an error if the time is up.

    Who gives no answer yet, as an agent that has bound its socket and does not listen so far, is asked again.
    """
    started_s = time.monotonic()
    failures: list[FlannelError] = []

    def holds() -> bool:
        try:
            return condition()
        except FlannelError as error:
            failures.append(error)
            return False

    assert wait_until(holds, timeout_s), f"not within {timeout_s:g} s: {what}{''.join(f'; {e}' for e in failures[-1:])}"
    return time.monotonic() - started_s


def all_reach(lab: Lab, version: int) -> bool:
    """Tell whether every pod's ping to every other one by this IP version is answered at once: for who waits for it.

    On a busy machine an answer may take a second: who asks once, and not until it is so, takes `unanswered`.
    """
    return None not in ping_matrix(lab.pods(), 0.5, version).values()


def unanswered(pods: Sequence[Pod], version: int = 4) -> list[tuple[str, str]]:
    """Ping from each of these pods to every other one, once; return from which to which there was no answer.

    On a busy machine an answer takes long. What is lost is not asked again.
    """
    answers = ping_matrix(pods, PATIENCE_S, version)
    return [ends for ends, seconds in answers.items() if seconds is None]


def wait_for_pings(lab: Lab, versions: Iterable[int] | None = None) -> None:
    """Wait until that is so by each of these versions, else by all that the lab has."""
    for version in lab.plan.versions if versions is None else versions:
        wait_for(f"pings by IPv{version}", partial(all_reach, lab, version))


def pid_of(host: Host) -> int:
    """Return the process id of the agent that answers."""
    pid: int = host.control("/v1/status")["pid"]
    return pid


def has_ended(pid: int) -> bool:
    """Tell whether a process and all its threads have ended, their files closed: it leaves its namespaces before."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_readable(descriptor, 0.0)
    finally:
        os.close(descriptor)


def subnet_of(host: Host) -> IPv4Network:
    """Return the subnet that a host's agent wrote to subnet.env."""
    subnet = host.subnet
    assert subnet is not None, f"{host.name} has no subnet"
    return subnet


def peers_of(host: Host) -> dict[str, str]:
    """Return the peers that a host's agent knows: subnet → public IP."""
    return {peer["subnet"]: peer["public_ip"] for peer in host.control("/v1/peers")}


def wait_for_peers(hosts: Sequence[Host]) -> None:
    """Wait until the agents of these hosts know each other's present subnets."""
    subnets = {
        host: {str(host.subnet_of(version)): str(host.underlay_of(version)) for version in host.plan.versions}
        for host in hosts
    }

    def knows_the_others(host: Host) -> bool:
        known = peers_of(host).items()
        return all(theirs.items() <= known for other, theirs in subnets.items() if other is not host)

    wait_for("the agents know each other", lambda: all(knows_the_others(host) for host in hosts))


def start_agents(hosts: Sequence[Host], *arguments: str) -> None:
    """Start the agents of hosts where the lab started none; wait for them, attach their pods, let them meet."""
    for host in hosts:
        host.start_agent(*arguments)
    for host in hosts:
        host.wait_ready(AGENT_TIMEOUT_S)
        host.attach_pods()
    wait_for_peers(hosts)


def restart_agents(hosts: Sequence[Host], *arguments: str) -> None:
    """End the agents that run on these hosts, start one on each, and let them meet."""
    for host in hosts:
        if host.agent_pid() is not None:
            host.stop_agent()
    for host in hosts:
        host.start_agent(*arguments)
    for host in hosts:
        host.wait_ready()
    wait_for_peers(hosts)


def up_with_peers(lab: Lab) -> Lab:
    """Wait until the agents of a fresh lab know each other, so that the first packet already arrives."""
    wait_for_peers([host for host in lab.hosts if host.runs_agent])
    return lab


def acquaint(hosts: Sequence[Host]) -> None:
    """Have the agents of these hosts ask each other by echoes now, wherever packets are to be counted one by one.

    Each asks every peer once, to know whether it answers: else some ten seconds after the first packet, amid the test.
    """
    addresses = {str(host.underlay) for host in hosts}

    def all_answer(host: Host) -> bool:
        rows = host.control("/v1/peers?probe")
        return all(row["echo"]["answered"] for row in rows if row["public_ip"] in addresses)

    for host in hosts:
        wait_for(f"{host.name} has asked its peers", partial(all_answer, host))


def drops_of(host: Host, direction: str) -> dict[str, int]:
    """Return how many packets the agent dropped, by reason; `direction` is ``in`` or ``out``."""
    drops: dict[str, int] = host.control("/v1/status")["counters"][direction]["drops"]
    return drops


def messages(lines: Iterable[str]) -> list[str]:
    """Return the agent's lines without level and time."""
    return [line.split(" ", 3)[3] if line[1:4] == " 20" else line for line in lines]


def log_of(host: Host) -> list[str]:
    """Return what the agent of a lab said so far."""
    return messages(host.log_file.read_text().splitlines())


class Log:
    """What a host's agent says from now on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._start = len(self._all())

    def lines(self, part: str = "") -> list[str]:
        """Return the lines that hold `part`."""
        return [line for line in messages(self._all()[self._start :]) if part in line]

    def events(self, part: str = "") -> list[str]:
        """Return these lines but for those on what is degraded: a look each second says these when it comes."""
        return [line for line in self.lines(part) if not line.startswith(("degraded: ", "no longer degraded: "))]

    def complaints(self) -> list[str]:
        """Return its warnings and errors."""
        return messages(line for line in self._all()[self._start :] if line.startswith(("W ", "E ")))

    def _all(self) -> list[str]:
        return self._host.log_file.read_text().splitlines()


def in_mounts_of(agent: Agent) -> list[str]:
    """Return what to put before a command that is to see the files as the agent does: `ip netns exec` unshares mounts.

    With its root, too: the mounts' own root is another one where tests run in a chroot.
    """
    return ["nsenter", f"--target={agent.process.pid}", "--mount", "--root"]


def links_of(host: Host) -> list[str]:
    """Return the names of the tunnel devices of a host."""
    links = json.loads(host.run(["ip", "-json", "link"]).stdout)
    return [link["ifname"] for link in links if link["ifname"].startswith("flannel")]


def remains_of(host: Host) -> set[str]:
    """Return what an agent has left on a host: links, routes, and files beside the lab's own."""
    files = {path.name for path in host.state.iterdir()} - {"agent.log", "agent.pid", "pods.json"}
    routes = [line for line in host.run(["ip", "route"]).stdout.splitlines() if "flannel" in line]
    return {*files, *links_of(host), *routes}


def move_address(host: Host, old: Address | str, new: Address | str) -> None:
    """Give eth0 another IPv4 address of its network in the place of the one that it has: it has one all the time."""
    # Else what was added second would go with the first one, as a secondary address of that.
    write_sysctls(host.namespace, {"ipv4/conf/eth0/promote_secondaries": 1})
    host.configure(f"address add {new}/24 dev eth0", f"address del {old}/24 dev eth0")


@contextmanager
def undoing(host: Host, what: str) -> Iterator[None]:
    """Have a daemon that runs `ip` with this every 100 ms."""
    daemon = host.popen(["sh", "-c", f"while :; do ip {what} 2>/dev/null; sleep 0.1; done"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        daemon.kill()
        daemon.wait()


class Agent:
    """Our agent on a lab's host, run by the test itself; killed at the end of the block if it still runs.

    `wrapper` is a command that runs the agent with something taken away; `iface` is the flag's value, ``None``: no
    such flag; `program` is what Python runs as the agent.
    """

    def __init__(
        self,
        host: Host,
        *arguments: str,
        wrapper: Sequence[str] = (),
        iface: str | None = "eth0",
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "flannel_udp"),
    ) -> None:
        self.host = host
        command = [
            *(*wrapper, sys.executable, *program),
            *([] if iface is None else ["--iface", iface]),
            *("--subnet-file", str(host.subnet_file), "--control-socket", str(host.control_socket)),
            *("--state-dir", str(host.state_dir)),
            *(*host.plan.registry_args, *arguments),
        ]
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLANNELD_") and k != "NOTIFY_SOCKET"}
        with host.log_file.open("a") as log:
            self._log_start = log.tell()
            self.process = host.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, **(environment or {})},
            )

    def said(self) -> list[str]:
        """Return its lines so far, without level and time."""
        raw = self.host.log_file.read_bytes()[self._log_start :]
        return messages(raw.decode(errors="replace").splitlines())

    def wait_for_line(self, part: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait for a line that holds `part`, and return it."""
        wait_until(lambda: any(part in line for line in self.said()), timeout_s)
        found = [line for line in self.said() if part in line]
        assert found, f"no line with {part!r} within {timeout_s:g} s in {self.said()}"
        return found[0]

    def wait_for_take_over(self, old: int) -> None:
        """Wait until it has taken over from process `old`, and that has ended; then wait until it carries traffic.

        Until its end the old one has all descriptors as well, and may be the one that probes reach.
        """
        self.wait_for_line(f"took over from process {old}, which ran flannel-udp ")
        wait_for(f"process {old} has ended", lambda: has_ended(old))
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it carries traffic."""
        wait_for(f"ready; it said {self.said()}", self.host.is_ready)

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s; it said {self.said()}") from None

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        self.process.terminate()
        return self.exit_code()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


def command_line(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours that asks the host's agent, and return what it printed.

    Commands give up after seconds, and on a busy machine an agent may be as slow: that is asked again.
    """
    argv = [sys.executable, "-m", "flannel_udp", *arguments, "--control-socket", str(host.control_socket)]
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        done = host.run(argv, check=False, timeout_s=PATIENCE_S)
        is_slow = any(text in done.stdout + done.stderr for text in ("did not answer within", "its queue is full"))
        if not is_slow or time.monotonic() > ends_s:
            return done


def command_json(host: Host, *arguments: str) -> Any:
    """Run such a command with --json and return the document. Raises `FlannelError` if there is none."""
    done = command_line(host, *arguments, "--json")
    if not done.stdout:
        raise FlannelError(f"no document: {done.stderr}")
    return json.loads(done.stdout)
