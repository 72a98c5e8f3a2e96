"""Whether the other hosts answer: through the tunnel where an agent asks them, else on the network between us."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from time import monotonic

from flannel_udp.admin.client import fetch_probed_peers
from flannel_udp.admin.shapes import PeerRow
from flannel_udp.control.entries import read_lease
from flannel_udp.doctor.finding import Finding, fault, note, ok, skipped
from flannel_udp.doctor.known import ANSWER_S, Known
from flannel_udp.errors import FlannelError
from flannel_udp.host.echo import ECHO_MIN_BYTES, EchoAnswer, Echoes
from flannel_udp.model import Address, Snapshot
from flannel_udp.netconf.addresses import why_not_dialled
from flannel_udp.options import Options
from flannel_udp.registry.open import open_registry

WITHIN_S = 5
"""Who has not had their turn by then is not asked."""
HEARD_S = 2.0
"""How long the agent asks a peer that does not answer, 3 s, less one: it looks once a second who was heard."""
_LAST_ANSWERS_S = 10.0  # a peer is asked for some seconds
_AT_ONCE, _TRIES, _TIMEOUT_S = 256, 2, 1.0  # as `flannel-udp peers --probe` asks, but on the network between us
_NAMED = 10

Answers = Mapping[Address, EchoAnswer]


def ask_peers(known: Known, options: Options) -> Iterator[Finding]:
    """Ask every peer, as far as the time reaches."""
    if known.status is None:
        yield from _ask_hosts(known.versions, options)
        return
    rows: Sequence[PeerRow] = known.peers
    if rows and known.status["ready"]:
        with suppress(FlannelError):  # it says so elsewhere, or takes too long: what it knows has to do
            rows = fetch_probed_peers(options.control_socket, lambda _n: None, _LAST_ANSWERS_S, within_s=WITHIN_S)
    yield from judge_peers(rows)


def judge_peers(rows: Sequence[PeerRow]) -> Iterator[Finding]:
    """Yield a fault for each peer that nothing travels to, as far as the agent knows, and one for all who are silent.

    Who is heard meanwhile and answers no echoes is well: some hosts answer none.
    """
    ill = [peer for peer in rows if peer["problem"]]
    asked = [peer for peer in rows if not peer["problem"] and "echo" in peer and not _in_no_time(peer)]
    silent = [peer for peer in asked if not peer["echo"]["answered"] and not _is_heard(peer)]
    for peer in ill[:_NAMED]:
        what = f"{peer['subnet']} on {peer['public_ip']}: {peer['problem']}"
        yield fault("peers", what, f"flannel-udp route get {peer['subnet'].split('/')[0]}")
    if len(ill) > _NAMED:
        yield fault("peers", f"and {len(ill) - _NAMED} more peers have problems", "flannel-udp peers")
    if silent:
        reasons = {peer["subnet"]: peer["echo"]["reason"] or "no answer" for peer in silent}
        named = [f"{peer['subnet']} on {peer['public_ip']} ({reasons[peer['subnet']]})" for peer in silent]
        yield fault(
            "peers",
            f"{len(silent)} of {len(asked)} that were asked answer no echo through the overlay: {_some(named)}",
            "flannel-udp peers --probe; are these hosts up, and does nothing on the way close the overlay to them?",
        )
    if not ill and not silent:
        text = f"{len(rows)}, and nothing is known to be in the way to any"
        yield ok("peers", f"{text}; {len(asked)} were asked" if asked else text)


def _is_heard(peer: PeerRow) -> bool:
    """Tell whether packets of it came while it was asked."""
    return peer["heard_ago_s"] is not None and peer["heard_ago_s"] < HEARD_S


def _in_no_time(peer: PeerRow) -> bool:
    return (peer["echo"]["reason"] or "").startswith("not asked")


# Without an agent


def _ask_hosts(versions: Sequence[int], options: Options) -> Iterator[Finding]:
    try:
        hosts, answers = asyncio.run(_ask_all(versions, options))
    except FlannelError as error:
        yield skipped("peers", str(error))
        return
    yield judge_hosts(hosts, answers)


async def _ask_all(versions: Sequence[int], options: Options) -> tuple[list[Address], Answers]:
    """Return the hosts that the registry names, and what came of asking them. Raises `FlannelError`."""
    snapshot = await _read_leases(options)
    hosts: set[Address] = set()
    for entry in snapshot.entries.values():
        with suppress(ValueError):
            attrs = read_lease(entry).attrs
            hosts.update(address for version in versions if (address := attrs.address_of(version)) is not None)
    waiting = sorted((host for host in hosts if why_not_dialled(host) is None), key=int)
    answers: dict[Address, EchoAnswer] = {}
    numbers, deadline_s = iter(waiting), monotonic() + WITHIN_S
    with closing(Echoes(os.getpid() & 0xFFFF)) as echoes:

        async def work() -> None:
            for host in numbers:
                for _ in range(_TRIES):
                    if monotonic() > deadline_s:
                        return
                    answers[host] = await echoes.ask(host, None, ECHO_MIN_BYTES, _TIMEOUT_S)
                    if answers[host].answered:
                        break

        await asyncio.gather(*(work() for _ in range(min(_AT_ONCE, len(waiting)))))
    return waiting, answers


async def _read_leases(options: Options) -> Snapshot:
    registry = open_registry(options)
    try:
        # Not asyncio.timeout: a store that blocks in a thread cannot be cancelled.
        return await asyncio.wait_for(registry.list(), ANSWER_S)
    except TimeoutError:
        raise FlannelError(f"the registry did not list its hosts within {ANSWER_S:g} s") from None
    finally:
        await registry.close()


def judge_hosts(hosts: Sequence[Address], answers: Answers) -> Finding:
    """Judge which of the hosts answer on the network between us; who does not may be no more than discreet."""
    unreachable = {host: answer.unreachable or answer.refused for host, answer in answers.items()}
    lost = [f"{host} ({why})" for host, why in unreachable.items() if why and not answers[host].answered]
    asked = f"{len(answers)} of {len(hosts)}" if len(answers) < len(hosts) else f"{len(hosts)}"
    if lost:
        what = f"of {asked} hosts that the registry names, {len(lost)} cannot be reached: {_some(lost)}"
        return fault("peers", what, "are they up, and is this host's network?")
    silent = [str(host) for host, answer in answers.items() if not answer.answered]
    if silent:
        what = f"of {asked} hosts that the registry names, {len(silent)} answer no echo: {_some(silent)}"
        return note("peers", what, "are they up? A firewall may drop echoes and nothing else")
    return ok("peers", f"{asked} hosts that the registry names answer")


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
