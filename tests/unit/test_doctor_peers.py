"""The doctor about the other hosts: each is named once, whoever knows of it."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from flannel_udp.admin.shapes import PeerRow
from flannel_udp.doctor.agent import judge_agent
from flannel_udp.doctor.finding import Verdict
from flannel_udp.doctor.known import Known
from flannel_udp.doctor.peers import judge_hosts, judge_peers
from flannel_udp.host.echo import EchoAnswer
from tests.support.status import PEER, RUNNING

WHY = "packets go there and nothing comes back (it answers no echo): does its agent run, and is UDP 8285 open?"


def peer(number: int, **given: Any) -> PeerRow:
    row: dict[str, Any] = {
        **PEER,
        "subnet": f"10.1.{number}.0/24",
        "public_ip": f"192.0.2.{number}",
        "health": "idle",
        "heard_ago_s": None,
    }
    row |= {"problem": None, **given}
    return row  # type: ignore[return-value]


def echo(reason: str | None = None) -> dict[str, Any]:
    return {"answered": reason is None, "round_trip_ms": 1.0 if reason is None else None, "reason": reason}


def test_an_ill_peer_is_named_once() -> None:
    ill = [peer(7, problem=WHY)]
    problems = ["flannel0 does not forward: dropped is all: sysctl", f"peer 192.0.2.7 (10.1.7.0/24): {WHY}"]
    known = Known(status={**RUNNING, "problems": problems, "degraded": ["peers"]}, peers=ill)
    assert [item.what for item in judge_agent(known)][1:] == ["flannel0 does not forward: dropped is all"]
    (found,) = judge_peers(ill)
    assert (found.verdict, found.what) == (Verdict.FAULT, f"10.1.7.0/24 on 192.0.2.7: {WHY}")
    assert found.mend == "flannel-udp route get 10.1.7.0"


def test_many_ill_ones_are_ten_and_one_count() -> None:
    ill = [peer(n, problem=WHY) for n in range(1, 101)]
    problems = [f"peer 192.0.2.{n} (10.1.{n}.0/24): {WHY}" for n in range(1, 11)]
    known = Known(
        status={**RUNNING, "problems": [*problems, "and 90 more or so: see flannel-udp peers"], "degraded": ["peers"]},
        peers=ill,
    )
    assert len(list(judge_agent(known))) == 1
    assert [item.what for item in judge_peers(ill)][10:] == ["and 90 more peers have problems"]


def test_peers_that_answer_no_echo_are_one_line_unless_they_were_heard() -> None:
    rows = [
        peer(1, echo=echo()),
        peer(2, echo=echo("no answer"), heard_ago_s=0.7),
        peer(3, echo=echo("no answer"), health="heard", heard_ago_s=7.0),
        peer(4, echo=echo("unreachable, says 192.0.2.9")),
        peer(5, echo=echo("not asked within 5 s")),
    ]
    (found,) = judge_peers(rows)
    assert found.verdict is Verdict.FAULT
    assert found.what == (
        "2 of 4 that were asked answer no echo through the overlay: "
        "10.1.3.0/24 on 192.0.2.3 (no answer), 10.1.4.0/24 on 192.0.2.4 (unreachable, says 192.0.2.9)"
    )
    (well,) = judge_peers(rows[:2])
    assert (well.verdict, well.what) == (
        Verdict.OK,
        "2, and nothing is known to be in the way to any; 2 were asked",
    )


def test_hosts_of_the_registry_that_are_silent_are_noted_and_unreachable_ones_a_fault() -> None:
    hosts = [IPv4Address(f"192.0.2.{n}") for n in range(1, 4)]
    answered, silent, lost = EchoAnswer(0.001), EchoAnswer(), EchoAnswer(unreachable="unreachable, says 192.0.2.9")
    verdicts = [
        judge_hosts(hosts, dict(zip(hosts, answers, strict=False))).verdict
        for answers in ([answered] * 3, [answered, silent, answered], [answered, silent, lost])
    ]
    assert verdicts == [Verdict.OK, Verdict.NOTE, Verdict.FAULT]
    assert judge_hosts(hosts, {hosts[0]: answered}).what == "1 of 3 hosts that the registry names answer"
