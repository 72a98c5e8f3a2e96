"""One run of the agent as a process: log, privileges, signals, exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import uvloop

from flannel_udp.admin import notify
from flannel_udp.agent.agent import Agent
from flannel_udp.agent.logs import start_log
from flannel_udp.errors import FlannelError, NoThread
from flannel_udp.handover.takeover import HandedOver
from flannel_udp.host.capabilities import FileAccess, Kept, drop_capabilities
from flannel_udp.host.privileges import check_privileges, shows_password
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

N_THREADS = 8
"""For what blocks: netlink, files, tools of the firewall."""
LOOP_FILES = 12
"""Descriptors that an event loop takes while it is made, and some to spare."""


def run(options: Options, remarks: Sequence[str] = ()) -> int:
    """Run the agent until it is told to stop; return the exit code.

    `remarks` are warnings about how it was started. Raises FlannelError, but where programs read the log: what ended
    it is the last line there.
    """
    for_people = start_log(options)
    for remark in remarks:
        logger.warning("%s", remark)
    try:
        return _live(options)
    except FlannelError as error:
        if for_people:
            raise
        logger.error("%s", error)
        return error.exit_code


def _live(options: Options) -> int:
    if shows_password(options.etcd.password):
        logger.warning(
            "every user can read the password in /proc/%d/cmdline: "
            "use --etcd-password-file or the variable FLANNELD_ETCD_PASSWORD",
            os.getpid(),
        )
    if _leaves_certificates_unused(options):
        logger.warning(
            "--etcd-endpoints: http means plain text: certificates are given and not used: for TLS write https"
        )
    check_privileges()
    kept = drop_capabilities(_files(options))  # now, for no other thread runs yet
    _check_open_files()
    return uvloop.run(_run(options, kept))


def _check_open_files() -> None:
    """Raise `FlannelError` where the event loop would get too few descriptors: it ends with a traceback then."""
    held: list[int] = []
    try:
        while len(held) < LOOP_FILES:
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        text = f"cannot start: {error.strerror}: raise the limit (ulimit -n; systemd: LimitNOFILE=)"
        raise FlannelError(text) from error
    finally:
        for descriptor in held:
            os.close(descriptor)


def _leaves_certificates_unused(options: Options) -> bool:
    """Tell whether etcd is spoken to in plain text, as with flanneld, where somebody may have meant TLS."""
    asks_etcd = options.registry == "etcd" and not options.kube.subnet_mgr
    plain = any(url.startswith("http:") for url in options.etcd.urls)
    return asks_etcd and options.etcd.has_certificates and plain


def _files(options: Options) -> list[FileAccess]:
    """Return what the agent will read and write by name."""
    etcd = options.etcd
    kind, _, name = options.registry.partition(":")
    read, written = [], [options.subnet_file, options.control_socket]
    if options.kube.subnet_mgr:
        read = [options.kube.net_config_path, options.kube.kubeconfig_file]
    elif kind == "etcd":
        read = [etcd.cafile, etcd.certfile, etcd.keyfile, getattr(etcd.password, "path", None)]
    elif kind == "file":
        read, written = [Path(name)], [*written, Path(name)]
    return [FileAccess(path, os.R_OK) for path in read if path is not None] + [
        FileAccess(path.parent, os.R_OK | os.W_OK | os.X_OK) for path in written
    ]


async def _run(options: Options, kept: Kept) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(started_pool())
    life = asyncio.current_task()
    assert life is not None  # noqa: S101 - a coroutine that uvloop.run runs has a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    agent = Agent(options, kept)
    loop.add_signal_handler(signal.SIGHUP, agent.reload_wanted.set)
    loop.add_signal_handler(signal.SIGUSR1, agent.log_status)
    watchdog = loop.create_task(notify.keep_watchdog(agent.come_round), name="watchdog")
    try:
        await agent.live()
    except asyncio.CancelledError:
        logger.info("stopped")
        return 0
    except BaseExceptionGroup as failures:
        if (handed_over := failures.subgroup(HandedOver)) is not None:
            logger.info("%s", handed_over.exceptions[0])
            if options.after_takeover == "wait":
                await _wait_to_be_stopped()
            return 0
        known = failures.subgroup(FlannelError)
        if known is None:
            raise
        raise _first(known) from None
    finally:
        watchdog.cancel()
    return 1


def started_pool() -> ThreadPoolExecutor:
    """Return the threads of `asyncio.to_thread`, all of them started: one that is lacking later on would end the agent.

    Where tasks are limited (a pod's, a unit's) others may have taken the rest by then. Raises `NoThread`.
    """
    pool, met = ThreadPoolExecutor(N_THREADS, "flannel-work"), threading.Barrier(N_THREADS)
    try:
        for _ in range(N_THREADS):  # each waits for the others, so that none has time for a second turn
            pool.submit(met.wait)
    except RuntimeError as error:
        met.abort()
        pool.shutdown(wait=False)
        raise NoThread(f"{N_THREADS} threads", error) from error
    return pool


async def _wait_to_be_stopped() -> None:
    logger.info("waiting for SIGTERM, and doing nothing else (--after-takeover=wait)")
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    logger.info("stopped")


def _first(failures: BaseExceptionGroup[FlannelError]) -> FlannelError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
