"""All questions in their order: each is answered by itself, and what cannot be asked costs only its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flannel_udp.doctor import agent, clock, cni, firewall, kernel, machine, managers, peers
from flannel_udp.doctor.finding import Finding, Verdict, skipped
from flannel_udp.doctor.known import Known, gather
from flannel_udp.errors import FlannelError
from flannel_udp.options import Options

Asking = Callable[[], Finding | Iterable[Finding]]


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
    yield "registry", lambda: agent.judge_registry(known, options)
    yield "rights", lambda: machine.ask_rights(known)
    yield "TUN", lambda: machine.ask_tun(known)
    yield "UDP port", lambda: machine.ask_port(known)
    yield "interface", lambda: kernel.ask_interface(known, options)
    yield "overlay", lambda: kernel.ask_overlay(known, options)
    yield "underlay", lambda: kernel.ask_underlay(known)
    yield "rules", lambda: kernel.ask_rules(known)
    yield "rp_filter", lambda: kernel.ask_source_checks(known)
    yield "firewall", lambda: firewall.ask_firewall(known)
    yield "br_netfilter", lambda: kernel.ask_bridge_netfilter(options)
    yield "network managers", lambda: managers.ask_managers(known)
    yield "peers", lambda: peers.ask_peers(known, options)
    yield "subnet file", lambda: agent.judge_subnet_file(known, options.subnet_file)
    yield "bridges", lambda: kernel.ask_bridges(known)
    yield "CNI", lambda: cni.ask_cni(conf_dir, bin_dirs, kubernetes=kubernetes)
    yield "buffers", lambda: machine.ask_buffers(known)
    yield "clock", lambda: clock.ask_clock(options)


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
