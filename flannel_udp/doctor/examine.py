"""All questions in their order: each is answered by itself, and what cannot be asked costs only its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from flannel_udp.doctor import agent, clock, cni, firewall, kernel, machine, managers, peers
from flannel_udp.doctor.finding import Finding, Verdict, skipped
from flannel_udp.doctor.known import Known, KnownFamily, gather
from flannel_udp.errors import FlannelError
from flannel_udp.options import Options

Asking = Callable[[], Finding | Iterable[Finding]]
FamilyAsking = Callable[[KnownFamily], Finding | Iterable[Finding]]


def examine(options: Options, conf_dir: Path, bin_dirs: Sequence[Path]) -> list[Finding]:
    """Ask everything; takes some ten seconds at most. The agent's answers come first."""
    known = gather(options)
    found = list(agent.judge_agent(known))
    for question, asking in _questions(known, options, conf_dir, bin_dirs):
        found += _answers(question, asking)
    return _without_repetitions(found)


def _questions(
    known: Known, options: Options, conf_dir: Path, bin_dirs: Sequence[Path]
) -> Iterator[tuple[str, Asking]]:
    kubernetes = options.kube.subnet_mgr
    needs = cache(partial(kernel.needs, options))  # names are looked up once
    yield "registry", lambda: agent.judge_registry(known, options)
    yield "rights", lambda: machine.ask_rights(known)
    yield "TUN", lambda: machine.ask_tun(known)
    yield "UDP port", lambda: machine.ask_port(known)
    yield "interface", lambda: kernel.ask_interface(known, options)
    yield from _of_each(known, "overlay", lambda family: kernel.ask_overlay(family, needs))
    yield from _of_each(known, "underlay", kernel.ask_underlay)
    yield from _of_each(known, "rules", kernel.ask_rules)
    yield from _of_each(known, "rp_filter", kernel.ask_source_checks)
    yield from _of_each(known, "firewall", firewall.ask_firewall)
    yield "connections", kernel.ask_connections
    yield "br_netfilter", lambda: kernel.ask_bridge_netfilter(options)
    yield "network managers", lambda: managers.ask_managers(known)
    yield "peers", lambda: peers.ask_peers(known, options)
    yield "subnet file", lambda: agent.judge_subnet_file(known, options.subnet_file)
    yield from _of_each(known, "bridges", kernel.ask_bridges)
    told = agent.judge_subnet_file(known, options.subnet_file).verdict is Verdict.OK
    subnet_file = options.subnet_file if told else None  # else it may be another one than the agent's
    yield "CNI", lambda: cni.ask_cni(conf_dir, bin_dirs, subnet_file, kubernetes=kubernetes)
    yield "buffers", lambda: machine.ask_buffers(known)
    yield "clock", lambda: clock.ask_clock(options)


def _of_each(known: Known, question: str, asking: FamilyAsking) -> Iterator[tuple[str, Asking]]:
    """Yield the question about each family that the overlay has; where it has both, the findings name theirs."""
    for family in known.families:
        if len(known.families) == 1:
            yield question, partial(asking, family)
        else:
            yield _named(question, family), partial(_ask_named, asking, family)


def _ask_named(asking: FamilyAsking, family: KnownFamily) -> Iterator[Finding]:
    found = asking(family)
    for item in [found] if isinstance(found, Finding) else found:
        yield item._replace(question=_named(item.question, family))


def _named(question: str, known: KnownFamily) -> str:
    return f"{question} ({known.family.name})"


def _answers(question: str, asking: Asking) -> list[Finding]:
    try:
        found = asking()
        return [found] if isinstance(found, Finding) else list(found)
    except FlannelError as error:
        return [skipped(question, str(error))]
    except OSError as error:
        return [skipped(question, f"{error.filename or 'the kernel'}: {error.strerror or error}")]


def _without_repetitions(found: Sequence[Finding]) -> list[Finding]:
    """Leave out what the agent said of a fault that was found here as well, which is named by its question then."""
    here = {_text(item) for item in found if item.question != "agent" and item.verdict is Verdict.FAULT}
    return [item for item in found if item.question != "agent" or _text(item) not in here]


def _text(item: Finding) -> str:
    """Return the sentence that was taken apart into what is wrong and what mends it."""
    return f"{item.what}: {item.mend}"
