"""A host joins a lab that is up: built like the others, or what was begun of it is taken away again."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.interruptible import uninterrupted
from flannel_udp.lab.lab import Lab, no_lab, standing
from flannel_udp.lab.memory import require_memory
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host
from flannel_udp.lab.plan import Plan

logger = logging.getLogger(__name__)


def add_host(name: str, extend: Callable[[Plan], Plan]) -> Host:
    """Add the last host of the plan that `extend` makes of a lab's; return it once all hosts know it.

    Raises `FlannelError`: no such lab, somebody else is adding a host, its agent did not get ready, `lab down`
    meanwhile. What fails midway is taken away.
    """
    with _one_at_a_time(Lab.attach(name)), standing(name) as stands:
        lab = Lab(extend(Lab.attach(name).plan))
        host = lab.hosts[-1]
        require_memory(int(host.runs_agent))
        _take_away(lab, host)  # what one has left that was killed
        try:
            _build(lab, host)
            if not stands():
                raise no_lab(name)
            lab.plan.save()
        except BaseException as error:
            if not _has_joined(lab, host):  # else what ends us came too late
                _take_away(lab, host)
            if isinstance(error, FlannelError | OSError) and not stands():
                raise FlannelError(f"the lab {name} was taken down while a host joined it") from None
            raise
    return host


@contextmanager
def _one_at_a_time(lab: Lab) -> Iterator[None]:
    """Raise `FlannelError` where somebody else is adding a host; the kernel lets go of the lock in any case."""
    try:
        lock = os.open(lab.plan.state / "joining.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # `lab down` meanwhile
        raise no_lab(lab.name) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FlannelError(f"somebody else is adding a host to the lab {lab.name}: try again") from None
    finally:
        os.close(lock)


def _build(lab: Lab, host: Host) -> None:
    logger.info("building %s, with pods: %d", host.name, len(host.pods))
    host.state.mkdir()
    lab.build_hosts([host])
    lab.ask_for_subnets([host])
    others = [other for other in lab.hosts[:-1] if other.runs_agent and other.agent_pid() is not None]
    if not host.runs_agent:
        return
    lab.start_agents(AGENT_TIMEOUT_S, [host])
    for one, known in ((host, others), *((other, [host]) for other in others)):
        own = {subnet.version for subnet in one.prefixes}
        one.wait_peers({subnet for other in known for subnet in other.prefixes if subnet.version in own})


def _has_joined(lab: Lab, host: Host) -> bool:
    saved = Plan.load(lab.name)
    return saved is not None and host.name in saved.host_names


def _take_away(lab: Lab, host: Host) -> None:
    """Remove whatever is there of a host, and nothing else. Ctrl-C and the like wait until it is done."""
    with uninterrupted():
        namespaces = [node.namespace for node in (host, *host.pods)]
        netns.stop_processes(namespaces)
        host.collect_agent()
        if (relay := lab.underlay.relay_of(host)) is not None:
            relay.stop()
        lab.underlay.end()
        switch = lab.underlay.switch_of(host.name)
        netns.ip_batch([f"link del {host.name}"], namespace=switch.namespace, keep_going=True)
        netns.ip_batch((f"netns del {namespace}" for namespace in namespaces), keep_going=True)
        for folder in (host.state, host.state_dir):
            shutil.rmtree(folder, ignore_errors=True)
