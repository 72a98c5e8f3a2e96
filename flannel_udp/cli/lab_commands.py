"""`lab …`: what its commands take; what they do is in `flannel_udp.lab.actions`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the lab)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import REST, Argument, Command
from flannel_udp.cli.flags import JSON_FLAG, Flag, choice_flag
from flannel_udp.cli.parsers import parse_bool, parse_path, whole
from flannel_udp.errors import UsageError


def _flag(name: str, help_: str, metavar: str = "NAME", default: str = "") -> Flag:
    return Flag(name, help_, metavar, default=default, in_environment=False)


def _number(name: str, help_: str, default: str) -> Flag:
    return Flag(name, help_, "N", whole(0), default=default, in_environment=False)


def _choice(name: str, help_: str, words: tuple[str, ...], default: str) -> Flag:
    return choice_flag(name, help_, words, default=default, in_environment=False)


LAB_NAME_FLAG = _flag("name", "which lab", default="lab")
_PLAN_FLAGS = (
    _number("hosts", "how many hosts", "2"),
    _number("pods", "pods on each host", "1"),
    _choice("backend", "how packets travel", tuple(LAB_BACKENDS), "flannel's, udp"),
    _flag(
        "datapath",
        "of a tunnel: auto, kernel or userspace; several go round the hosts: kernel,userspace",
        "LIST",
    ),
    _number("routed", "how many of the hosts, the last ones, are behind a router", "0"),
    _choice("families", "addresses of hosts and pods: IPv4, IPv6 or both", ("4", "6", "46"), "4"),
    _choice("registry", "where the leases live", ("file", "etcd"), "file"),
    Flag(
        "fixed",
        "subnets by the hosts' numbers: h1 has 10.244.1.0/24",
        "BOOL",
        parse_bool,
        switch=True,
        in_environment=False,
    ),
    Flag(
        "topology", "a file that says all of this, and more (examples/labs)", "FILE", parse_path, in_environment=False
    ),
)


def _up(given: Values) -> int:
    _check_families(given)
    from flannel_udp.cli.lab_plan import plan_of
    from flannel_udp.cli.lab_rootless import check_limits
    from flannel_udp.lab import actions
    from flannel_udp.lab.plan import DEFAULT_NAME

    plan = plan_of(given, DEFAULT_NAME)
    check_limits(plan)
    return actions.up(given, plan)


def _status(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.status(given)


def _exec(given: Values) -> int:
    command = given["COMMAND"]
    if not command or not command[0] or command[0].startswith("-"):
        raise UsageError("lab exec needs a command: flannel-udp lab exec [--name NAME] HOST[/POD] -- COMMAND...")
    from flannel_udp.lab import actions

    return actions.execute(given)


def _logs(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.logs(given)


def _list(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.list_all(given)


def _inspect(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.inspect_one(given)


def _graph(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.graph_one(given)


def _down(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.down(given)


def _demo(given: Values) -> int:
    _check_families(given)
    from flannel_udp.cli.lab_plan import plan_of
    from flannel_udp.cli.lab_rootless import check_limits
    from flannel_udp.lab import actions

    plan = plan_of(given, "demo")
    check_limits(plan)
    return actions.demo(given, plan)


def _check_families(given: Values) -> None:
    backend, families = given.get("backend"), given.get("families", "4")
    if backend is not None and "6" in families and 6 not in LAB_BACKENDS[backend].families:
        raise UsageError(f"--families {families}: the backend {backend} carries IPv4 only")


LAB_COMMANDS: Mapping[str, Command] = {
    "lab up": Command(
        "build hosts and pods, start an agent on every host",
        f"How packets travel is one of {', '.join(LAB_BACKENDS)}.\n\n"
        "example: flannel-udp lab up --hosts 5 --pods 2 --registry etcd",
        _up,
        {"lab": (LAB_NAME_FLAG, *_PLAN_FLAGS), "output": (JSON_FLAG,)},
    ),
    "lab status": Command(
        "show the hosts, what their agents run, and the pods",
        "example: flannel-udp lab status --json",
        _status,
        {"lab": (LAB_NAME_FLAG,), "output": (JSON_FLAG,)},
    ),
    "lab list": Command(
        "show all labs of this machine",
        "example: flannel-udp lab list --json",
        _list,
        {"output": (JSON_FLAG,)},
    ),
    "lab inspect": Command(
        "print all that there is of a lab: plan, namespaces, processes, ports, agents",
        "Always JSON.\n\nexample: flannel-udp lab inspect --json | jq '.hosts[].agent.status.state'",
        _inspect,
        {"lab": (LAB_NAME_FLAG,), "output": (JSON_FLAG,)},
    ),
    "lab graph": Command(
        "draw a lab, with what is not as it was built",
        "example: flannel-udp lab graph\n         flannel-udp lab graph --svg > lab.svg",
        _graph,
        {
            "lab": (LAB_NAME_FLAG,),
            "output": (
                Flag(
                    "svg",
                    "draw it as SVG, for a sheet or a page",
                    "BOOL",
                    parse_bool,
                    switch=True,
                    in_environment=False,
                ),
                JSON_FLAG,
            ),
        },
    ),
    "lab exec": Command(
        "run a command on a host, in a pod, or in `net` where the underlay's bridge is",
        "The command has the node's network and host name; the names of the others are known: h2, h2-p1. Our own\n"
        "commands find the host's agent and the registry by themselves. What follows HOST is the command's own.\n"
        "exit codes: the command's own, 127 where there is none of that name, 126 where it cannot be run.\n\n"
        "example: flannel-udp lab exec h1/p1 -- ping -c 3 h2-p1\n"
        "         flannel-udp lab exec h1 -- flannel-udp status\n"
        "         flannel-udp lab exec h1 bash",
        _exec,
        {"lab": (LAB_NAME_FLAG,)},
        (
            Argument("HOST[/POD]", "h1, h1/p1 or net"),
            Argument("COMMAND", "the command and its arguments", REST),
        ),
    ),
    "lab logs": Command(
        "print what a host's agent has logged",
        "example: flannel-udp lab logs -f h1",
        _logs,
        {
            "lab": (LAB_NAME_FLAG,),
            "output": (
                Flag(
                    "f",
                    "go on with what comes, until the lab goes",
                    "BOOL",
                    parse_bool,
                    switch=True,
                    in_environment=False,
                ),
            ),
        },
        (Argument("HOST", "h1, h2, …"),),
    ),
    "lab down": Command(
        "remove a lab, also a half-made or killed one",
        "example: flannel-udp lab down --all",
        _down,
        {
            "lab": (
                LAB_NAME_FLAG,
                Flag("all", "remove every lab of this machine", "BOOL", parse_bool, switch=True, in_environment=False),
            ),
            "output": (JSON_FLAG,),
        },
    ),
    "lab demo": Command(
        "build a lab, show how a packet gets from pod to pod, remove it",
        "example: flannel-udp lab demo --backend vxlan --datapath kernel,userspace",
        _demo,
        {"lab": (_flag("name", "which lab", default="demo"), *_PLAN_FLAGS), "output": (JSON_FLAG,)},
    ),
}
