"""`lab add` and `lab save`: what they take; what they do is in `lab.changes`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the lab)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.flags import JSON_FLAG, Flag
from flannel_udp.cli.lab_commands import LAB_NAME_FLAG
from flannel_udp.cli.parsers import choice
from flannel_udp.errors import UsageError

_WHAT = ("host",)


def _add(given: Values) -> int:
    try:
        choice(*_WHAT)(given["WHAT"])
    except ValueError as error:
        raise UsageError(f"lab add: {error}") from None
    from functools import partial

    from flannel_udp.cli.lab_plan import with_another_host
    from flannel_udp.lab import changes

    return changes.add(given, partial(with_another_host, behind=given.get("behind")))


def _save(given: Values) -> int:
    from flannel_udp.lab import changes

    return changes.save(given)


LAB_CHANGE_COMMANDS: Mapping[str, Command] = {
    "lab add": Command(
        "let another host join a lab that is up",
        "It has the next number, as many pods as the others and a perfect link. Done once all know each other.\n\n"
        "example: flannel-udp lab add host --behind r1",
        _add,
        {
            "lab": (
                LAB_NAME_FLAG,
                Flag("behind", "the router that it is behind; the lab has to have it", "ROUTER", in_environment=False),
            ),
            "output": (JSON_FLAG,),
        },
        (Argument("WHAT", "|".join(_WHAT), words=_WHAT),),
    ),
    "lab save": Command(
        "print a lab that is up as a topology file: `lab up --topology` makes it again",
        "With the hosts that have joined it, and the subnets that they have now; without faults.\n\n"
        "example: flannel-udp lab save > mine.toml",
        _save,
        {"lab": (LAB_NAME_FLAG,)},
    ),
}
