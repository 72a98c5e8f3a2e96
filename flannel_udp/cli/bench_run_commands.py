"""`bench run` and `bench serve`: what they take; what they do is in `flannel_udp.bench`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must load nothing)

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.bench_commands import FORMAT, chosen_format
from flannel_udp.cli.command import Command
from flannel_udp.cli.flags import JSON_FLAG, Flag, choice_flag
from flannel_udp.cli.parsers import names_of, parse_offload, parse_path, parse_wait, whole

CONTENDERS = ("bare", "vxlan", "naive", "udp", "vxlan-userspace", "host-gw", "wireguard-go")
MEASURES = (
    *("tcp1", "tcp4", "tcp-both", "udp64", "udp1400", "udp64-both", "udp64-offered", "udp64-loss-free"),
    *("rtt", "rtt-loaded"),
)
UNDERLAYS = ("whole", "wire", "plain", "slow-1g", "slow-100m")


def _offload(text: str) -> str:
    """Check what our agents are to be told, and return it as it is."""
    parse_offload(text)
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
    _flag("measures", f"all, or some of {', '.join(MEASURES)}", "LIST", names_of(*MEASURES), "tcp1,tcp4,udp64,rtt"),
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


def _run(given: Values) -> int:
    chosen = chosen_format(given)
    from flannel_udp.bench.contenders import Where
    from flannel_udp.bench.measure import DEFAULT_MEASURES
    from flannel_udp.bench.measuring import CUBIC, Schedule
    from flannel_udp.bench.quiet import Quiet
    from flannel_udp.bench.running import InLabs, Output, run_and_keep

    output = Output(given.get("o", Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}.json")), given.get("report"), chosen)
    schedule = Schedule(given.get("rounds", 5), given.get("seconds", 2), CUBIC, given.get("max-foreign", 10))
    wait_s = given.get("wait", 60.0) or 0.0
    measures = given.get("measures", DEFAULT_MEASURES)
    place = Where(given.get("underlay", "wire"), given.get("between", "pods"), int(given.get("family", "4")))
    wanted = InLabs(given.get("contenders", CONTENDERS[:4]), measures, place, given.get("offload"))
    output.check()
    wanted.check()
    options = {**wanted.options, "rounds": schedule.rounds, "seconds": schedule.seconds}
    options |= {"max_foreign": schedule.max_foreign, "wait": f"{wait_s:g}s"}
    return run_and_keep(wanted, schedule, Quiet(schedule.max_foreign, wait_s), output, options)


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
        "Needs iperf3 (tcp…, rtt-loaded), ping (rtt…), a C compiler (naive, udp64…, udp1400): what is lacking is said\n"
        "before it starts. exit codes: 0 measured; 1 failed, or something is lacking; 2 wrong usage; 130 Ctrl-C.\n\n"
        "examples:\n"
        "  sudo flannel-udp bench run --report report.html\n"
        "  sudo flannel-udp bench run --rounds 15 --offload off -o off.json\n",
        _run,
        {"what": _IN_LABS, "how": _HOW, "output": _OUTPUT},
    ),
}
