"""What others of this host come in by: made at the start, put back when somebody (a cleaner of /run) has removed it."""

from __future__ import annotations

import asyncio
import logging
import socket

from flannel_udp.admin.control_socket import ControlServer
from flannel_udp.admin.health import health_server, open_health_listener
from flannel_udp.admin.metrics import MetricsSource
from flannel_udp.agent.state import AgentState
from flannel_udp.control.retry import retry
from flannel_udp.errors import FlannelError
from flannel_udp.handover.in_thread import in_thread
from flannel_udp.handover.takeover import Listeners, open_listeners
from flannel_udp.model import Degradation
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5


async def listen(options: Options) -> Listeners:
    """Make the sockets of a fresh agent, as soon as they can be made; cancelled it leaves none.

    Raises `Claimed` for another agent's, `UsageError` for a path that no socket can have.
    """
    return await retry("making the control socket", lambda: _listen(options))


async def _listen(options: Options) -> Listeners:
    opened: list[Listeners] = []
    try:
        await in_thread(lambda: opened.append(open_listeners(options)), _wait)  # a second and a half at most
    except asyncio.CancelledError:
        for listeners in opened:
            listeners.close()
        raise
    return opened[0]


def _wait() -> None:
    """Let it end by itself."""


async def answer_probes(listeners: Listeners, options: Options, source: MetricsSource, state: AgentState) -> None:
    """Serve /healthz, /readyz and /metrics until cancelled; a port that another program has is waited for.

    Meanwhile packets travel: pods need them more than probes need an answer.
    """

    async def open_() -> socket.socket | None:
        try:
            opened = open_health_listener(options.healthz_ip, options.healthz_port)
        except FlannelError as failed:
            state.conditions.note("health", [Degradation("host", str(failed))], said=True)
            raise
        state.conditions.note("health", (), said=True)
        return opened

    if listeners.health is None:
        listeners.health = await retry("answering probes", open_)
    async with health_server(listeners.health, source):
        await asyncio.Event().wait()


async def keep_sockets(listeners: Listeners, server: ControlServer, state: AgentState) -> None:
    """Put the sockets' files back whenever they are gone, for ever; while that cannot be we are not ready.

    One that leads to another agent that lives is left to that one.
    """
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            for listener in (listeners.control, listeners.handover):
                if not listener.stands:
                    made = await in_thread(listener.make_anew, _wait)
                    if listener is listeners.control:
                        await server.answer_on(made[0])
                    listener.replace(made)
                    state.repairs["control-socket"] += 1
                    logger.info("put right: %s, which somebody had removed", listener.path)
            state.hinder("sockets", None)
        except FlannelError as failed:
            state.hinder("sockets", str(failed))
