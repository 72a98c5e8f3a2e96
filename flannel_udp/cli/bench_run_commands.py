"""`bench run` and `bench serve`: what they take; what they do is in `flannel_udp.bench`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must load nothing)

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flannel_udp.bench import names
from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.bench_commands import FORMAT, chosen_format
from flannel_udp.cli.command import Command
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, SUBNET_FILE_FLAG, Flag, choice_flag
from flannel_udp.cli.parsers import names_of, parse_listen_ip, parse_offload, parse_path, parse_wait, whole
from flannel_udp.errors import Faults, FlannelError, UsageError

if TYPE_CHECKING:
    from flannel_udp.bench.measuring import Schedule
    from flannel_udp.bench.quiet import Quiet
    from flannel_udp.bench.running import Output

CONTENDERS = ("bare", "vxlan", "naive", "udp", "vxlan-userspace", "host-gw", "wireguard-go")
UNDERLAYS = ("whole", "wire", "plain", "slow-1g", "slow-100m")


def _offload(text: str) -> str:
    """Check what our agents are to be told, and return it as it is."""
    parse_offload(text)
    return text


def _host(text: str) -> str:
    """Check the name or address of a host and return it as it is."""
    if not text or not text.isprintable() or len(text) > 64:
        raise ValueError(f"{text[:64]!r} is no host")
    return text


def _flag(name: str, help_: str, metavar: str, parse: Callable[[str], object], default: str) -> Flag:
    return Flag(name, help_, metavar, parse, default=default, in_environment=False)


def _choice(name: str, help_: str, words: tuple[str, ...], default: str) -> Flag:
    return choice_flag(name, help_, words, default=default, in_environment=False)


_IN_LABS = (
    _flag(
        "contenders",
        f"what to compare: all, or some of {', '.join(CONTENDERS)}",
        "LIST",
        names_of(*CONTENDERS),
        "bare,vxlan,naive,udp",
    ),
    _choice("underlay", "what the hosts' network cards do", UNDERLAYS, "wire"),
    _choice("between", "between what traffic goes", ("pods", "hosts"), "pods"),
    _choice("family", "the IP version of packets, inside and outside", ("4", "6"), "4"),
    _flag("offload", "our agents' --offload: auto, off or a list", "LIST", _offload, "auto"),
)
_HOW = (
    _flag(
        "measures",
        f"all, or some of {', '.join(names.KINDS)}; such as tcp16, tcp1-write64k, udp512",
        "LIST",
        names.parse_measures,
        ",".join(names.DEFAULT),
    ),
    _flag("rounds", "how often each is measured; less than 4 claim nothing", "N", whole(1, 100), "5"),
    _flag("seconds", "how long a sample takes", "N", whole(1, 60), "2"),
    _flag("max-foreign", "samples do not count if others used more of a core", "PERCENT", whole(0, 100_000), "10"),
    _flag("wait", "how long to wait in all for a machine that is busy; 0: not at all", "TIME", parse_wait, "60s"),
)
_OUTPUT = (
    _flag("o", "where to write all samples, for show, compare and report", "FILE", parse_path, "bench-DATE-TIME.json"),
    _flag("report", "write an HTML report, too", "FILE", parse_path, ""),
    FORMAT,
    JSON_FLAG,
)


_TO_HOST = tuple(name for name in names.DEFAULT if not names.needs_blast(name))
"""What is measured to another host unless told otherwise: what needs no compiler there."""
_PORT = _flag(
    "port",
    "TCP port of `bench serve`; tests take iperf3's own, 5201, and UDP 5202",
    "PORT",
    whole(0, 65535),
    "5200",
)
_TO = (
    _flag("to", "measure to this host, where `bench serve` runs, in place of in labs", "HOST", _host, ""),
    _PORT,
    CONTROL_SOCKET_FLAG,
)
_SERVE = (
    _flag("listen", "address to be asked at; ::, all of both families", "IP", parse_listen_ip, "0.0.0.0"),  # noqa: S104
    _PORT,
    SUBNET_FILE_FLAG,
)


def _run(given: Values) -> int:
    chosen = chosen_format(given)
    from flannel_udp.bench.measuring import CUBIC, Schedule
    from flannel_udp.bench.running import Output

    output = Output(given.get("o", Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}.json")), given.get("report"), chosen)
    output.check()
    schedule = Schedule(given.get("rounds", 5), given.get("seconds", 2), CUBIC, given.get("max-foreign", 10))
    return _run_to_host(given, schedule, output) if "to" in given else _run_in_labs(given, schedule, output)


def _run_in_labs(given: Values, schedule: Schedule, output: Output) -> int:
    if "port" in given:
        raise UsageError("--port is about two hosts: give --to as well")
    from flannel_udp.bench.choosing import has_wireguard
    from flannel_udp.bench.contenders import Where
    from flannel_udp.bench.running import InLabs, run_and_keep

    place = Where(given.get("underlay", "wire"), given.get("between", "pods"), int(given.get("family", "4")))
    measures = given.get("measures", names.DEFAULT)
    contenders = given.get("contenders", CONTENDERS[:4])
    if contenders == CONTENDERS and not has_wireguard():
        sys.stderr.write("bench: wireguard-go, or wg, is not installed: all are measured but it\n")
        contenders = CONTENDERS[:-1]
    wanted = InLabs(contenders, measures, place, given.get("offload", "auto"))
    wanted.check()
    return run_and_keep(wanted, schedule, _quiet(given, schedule), output)


def _run_to_host(given: Values, schedule: Schedule, output: Output) -> int:
    for flag in _IN_LABS:
        if flag.name in given:
            raise UsageError(f"{flag.spelling} is about labs: with --to two hosts are measured as they are")
    from flannel_udp.bench.between_hosts import to_host
    from flannel_udp.bench.lines import PORT
    from flannel_udp.bench.running import run_and_keep

    measures = given.get("measures", _TO_HOST)
    if measures == names.ALL:
        measures = tuple(name for name in names.ALL if name != names.UDP_BOTH)
    with to_host(given["to"], given.get("port", PORT), measures) as wanted:
        return run_and_keep(wanted, schedule, _quiet(given, schedule, _agent(given)), output)


def _agent(given: Values) -> tuple[int, ...]:
    """Return the process id of the agent that runs here, which is none of those that disturb; nothing without one."""
    from flannel_udp.admin.client import fetch_status

    try:
        pid = fetch_status(to_options(given).control_socket).get("pid")
    except FlannelError:
        return ()
    return () if pid is None else (pid,)


def _quiet(given: Values, schedule: Schedule, ours: tuple[int, ...] = ()) -> Quiet:
    from flannel_udp.bench.quiet import Quiet

    return Quiet(schedule.max_foreign, given.get("wait", 60.0) or 0.0, ours)


def _serve(given: Values) -> int:
    import logging
    from ipaddress import ip_address

    from flannel_udp.bench.choosing import lacking_between_hosts
    from flannel_udp.bench.lines import PORT
    from flannel_udp.bench.machine import in_one_line
    from flannel_udp.bench.serving import Server
    from flannel_udp.lab.interruptible import interruptible
    from flannel_udp.lab.progress import progress

    if lacking := lacking_between_hosts(("tcp1",)):
        raise Faults(lacking)
    address, port = ip_address(given.get("listen", "0.0.0.0")), given.get("port", PORT)  # noqa: S104 - as iperf3
    server = Server(address, port, to_options(given).subnet_file, in_one_line())
    with progress(logging.getLogger("bench"), "bench"), interruptible(), suppress(SystemExit):
        server.serve()
    return 0


BENCH_RUN_COMMANDS: Mapping[str, Command] = {
    "bench run": Command(
        "measure what is forwarded here, beside the cable alone, the kernel's VXLAN and a naive loop",
        "Everything happens in hosts of a lab, network namespaces that are gone afterwards; root. A round takes each\n"
        "measure on each contender, one straight after the other. A sample during which other processes used the\n"
        "processor is taken once more. Ctrl-C ends it: what was measured until then is kept and shown.\n\n"
        "bare             nothing in between: the upper bound\n"
        "vxlan            the kernel's VXLAN, set up as flannel does\n"
        "naive            a loop of one read and one sendto a packet; compiled when it starts\n"
        "udp              our agents; results call it ours, and say how it compares with each other one\n"
        "vxlan-userspace  our agents with VXLAN by our own packet path; results call it ours-vxlan\n"
        "host-gw          our agents with kernel routes\n"
        "wireguard-go     WireGuard in user space, which encrypts as well; where it is installed\n\n"
        "With --to it measures to another host, where `flannel-udp bench serve` runs, by the underlay (bare) and by\n"
        "the overlay (ours), side by side.\n\n"
        "tcpN             TCP, N streams; tcpN-writeBYTES with 64 to 64k bytes a write; tcp-both: one each way\n"
        "udpBYTES         datagrams of 1 to 1400 bytes, as many as one process sends; udp64-both, each way\n"
        "udp64-offered    50,000, 100,000 and 200,000 a second, and how many of them are lost\n"
        "udpBYTES-loss-free  the highest rate without loss, after RFC 2544\n"
        "rtt, rtt-loaded  a ping each millisecond, on an idle path or beside a TCP stream: percentiles to p99.9\n\n"
        "Needs iperf3 (tcp…, rtt-loaded), ping (rtt…), a C compiler (naive, udp…): what is lacking is said\n"
        "before it starts. exit codes: 0 measured; 1 failed, or something is lacking; 2 wrong usage; 130 Ctrl-C.\n\n"
        "example: sudo flannel-udp bench run --rounds 15 --report report.html",
        _run,
        {"in labs": _IN_LABS, "between two hosts": _TO, "how": _HOW, "output": _OUTPUT},
    ),
    "bench serve": Command(
        "stand at the other host while `bench run --to` measures",
        "One client at a time makes it run iperf3, for one test each, or count datagrams, at the address that was\n"
        "dialled (the underlay) and at this host's address of the overlay, which subnet.env tells. Whoever reaches\n"
        "the port can make load here: listen where only those do who may, and end it when you are done, by Ctrl-C\n"
        "or SIGTERM. Needs iperf3; to count datagrams (udp…) a C compiler and root, for nothing else.\n\n"
        "example: flannel-udp bench serve --listen 192.0.2.2\n"
        "and on the other host: sudo flannel-udp bench run --to 192.0.2.2",
        _serve,
        {"where": _SERVE},
    ),
}
