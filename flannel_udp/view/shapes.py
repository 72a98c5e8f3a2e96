"""The documents that the page gets: what a lab is like at one moment, and a packet's way to be replayed."""

from __future__ import annotations

from typing import Any, TypedDict

from flannel_udp.admin.trace_shapes import TraceHeader


class Passed(TypedDict):
    """What has passed a link in one direction since it was plugged in; ``..._s``: in a second, lately."""

    bytes: int
    packets: int
    bytes_s: float | None
    packets_s: float | None


class LinkRow(TypedDict):
    """A cable by its name; the counters are those of its port at the bridge, ``dropped`` those of both ends."""

    name: str
    up: bool
    mtu: int
    to_node: Passed
    from_node: Passed
    dropped: int
    dropped_s: float | None


class AgentRow(TypedDict):
    """What an agent says of itself; ``drops`` by direction and reason, ``lease`` in words."""

    pid: int
    ready: bool
    state: str
    problems: list[str]
    peers: int
    lease: str
    drops: dict[str, int]
    drops_s: float | None


class HostRow(TypedDict):
    """A host; ``agent`` is ``None`` where none answers, and ``why`` says why."""

    name: str
    addresses: list[str]
    subnets: list[str]
    agent: AgentRow | None
    why: str
    pods: list[str]


class Look(TypedDict):
    """A lab at one moment. ``drawing`` is another number whenever the drawing has changed.

    ``lesson`` is `lab.lessons.lesson.Progress` as data, ``None`` for a lab without one, and where its file makes no
    sense just now, as ``lesson_wrong`` says.
    """

    name: str
    about: str
    etcd: bool
    hosts: list[HostRow]
    links: list[LinkRow]
    faults: dict[str, list[str]]
    drawing: int
    lesson: dict[str, Any] | None
    lesson_wrong: str | None


class Step(TypedDict):
    """A place on a packet's way: ``node`` is where it is in the drawing, empty for nowhere.

    ``good`` is whether it gets on from there. ``headers`` are those of the packet as it is there, where they are known
    byte by byte.
    """

    node: str
    title: str
    lines: list[str]
    headers: list[TraceHeader]
    good: bool


class Way(TypedDict):
    """A packet's way, and the command that told it; ``error`` is why there is none."""

    command: str
    steps: list[Step]
    end: str
    error: str | None
