"""`lab view` and `lab follow`: a lab in a browser, and a packet's way through it."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the lab)

from __future__ import annotations

import sys
from collections.abc import Mapping

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.flags import JSON_FLAG, Flag, choice_flag
from flannel_udp.cli.lab_commands import LAB_NAME_FLAG
from flannel_udp.cli.parsers import whole


def _view(given: Values) -> int:
    from flannel_udp.lab.plan import DEFAULT_NAME
    from flannel_udp.view.server import serve

    def say(url: str) -> None:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()

    name = given.get("name", DEFAULT_NAME)
    code = serve(name, given.get("port", 0), say)
    if code == 0:
        sys.stderr.write(f"flannel-udp: the lab {name} is gone\n")
    return code


def _follow(given: Values) -> int:
    from flannel_udp.lab import actions

    return actions.follow(given)


LAB_VIEW_COMMANDS: Mapping[str, Command] = {
    "lab view": Command(
        "show a lab in a browser of this machine: drawing, live figures, a packet's way, faults at a click",
        "Prints the address of the page: only this machine reaches it, and whoever has the token in it may use it.\n"
        "What the page does is done by these commands, and it shows them. Ends on Ctrl-C, or when the lab goes.\n\n"
        "example: flannel-udp lab view --port 8000",
        _view,
        {
            "lab": (LAB_NAME_FLAG,),
            "page": (
                Flag(
                    "port", "TCP port on 127.0.0.1", "N", whole(0, 65_535), default="a free one", in_environment=False
                ),
            ),
        },
    ),
    "lab follow": Command(
        "send one ping from pod to pod, and show it at each place on its way",
        "The pods are on different hosts. `lab trace` tells what would become of a packet, and sends none.\n"
        "exit codes: 0 it arrived, 1 it did not, 2 wrong usage.\n\n"
        "example: flannel-udp lab follow h1/p1 h2/p1",
        _follow,
        {
            "lab": (
                LAB_NAME_FLAG,
                choice_flag("family", "IP version", ("4", "6"), default="the lab's first", in_environment=False),
            ),
            "output": (JSON_FLAG,),
        },
        (Argument("SRC", "h1/p1"), Argument("DST", "h2/p1")),
    ),
}
