"""Class `SubnetFile`: what container runtimes read of us stands, whatever happens to the file."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.files.atomic import make_directory
from flannel_udp.files.claim import Claim
from flannel_udp.files.subnet_env import SubnetEnv, SubnetEnvError
from flannel_udp.files.watch import FileWatch

logger = logging.getLogger(__name__)

REPAIR = "subnet_env"
"""As what a file that was put back is counted."""
_REST_S = 0.2  # after a look: however often somebody changes it, it is looked at five times a second at most
_RETRY_S = 1.0
_LOOK_EVERY_S = 10.0  # for what inotify does not tell: another folder mounted over ours
_LOOK_UNHEARD_S = 1.0  # where there is no inotify
_QUIET_S = 60.0  # between two lines of log about a file that somebody keeps changing


class SubnetFile:
    """Keeps subnet.env at `path`; `run` does the work, `want` says what it is to hold.

    It is written where a link at `path` leads, and only while no other agent keeps it: two that wrote one file for two
    overlays would undo each other's work for ever. `told()` is called after `obstacle` has changed.
    """

    def __init__(self, path: Path, told: Callable[[], None]) -> None:
        self.obstacle: str | None = None
        """Why the file is not as it should be."""
        self.repairs = Counter({REPAIR: 0})
        self._path = path
        self._told = told
        self._wanted: SubnetEnv | None = None
        self._stood: SubnetEnv | None = None  # what the file held when it was looked at last
        self._wake = asyncio.Event()
        self._stands = asyncio.Event()
        self._quiet_until_s = 0.0
        self._claim = Claim(Path(os.path.realpath(path)))  # until the end of `run`

    def former(self) -> SubnetEnv | None:
        """Return what an earlier run left, ``None`` for nothing, and where another agent keeps the file: it is its own.

        Raises `FlannelError` if it cannot be understood.
        """
        with suppress(OSError):  # no folder yet, or one that takes nothing: nobody keeps a file in it
            try:
                self._claim.take()
            except FlannelError:
                return None
        return subnet_env.read(self._path)

    def want(self, env: SubnetEnv | None) -> None:
        """Have the file hold this from now on; ``None`` leaves it as it is, to whoever changes it."""
        self._wanted = env
        self._stood = None
        self._stands.clear()
        if env is None:
            self._note(None)
        self._wake.set()

    async def stands(self) -> None:
        """Return once the file holds what is wanted."""
        await self._stands.wait()

    async def run(self) -> None:
        """Write and keep what is wanted, for ever. What goes wrong is said once and tried again."""
        with closing(self._claim), self._watch() as watch:
            while True:
                self._wake.clear()
                pause_s = _LOOK_UNHEARD_S if watch is None else _LOOK_EVERY_S
                wanted = self._wanted
                if wanted is not None and not await self._look(wanted):
                    pause_s = _RETRY_S
                if watch is not None:
                    watch.renew()
                await asyncio.sleep(_REST_S)
                # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()

    async def _look(self, wanted: SubnetEnv) -> bool:
        """Look, and write what is not as wanted; tell whether the file stands now."""
        try:
            instead = await asyncio.to_thread(_put, self._path, wanted, self._claim)
        except FlannelError as failed:
            self._note(str(failed))
            return False
        if wanted is not self._wanted:
            self._wake.set()
            return True
        if self._stood is not None and instead is not None:
            self.repairs[REPAIR] += 1
            self._say_put_back(instead)
        elif instead is not None:
            logger.info("wrote %s", self._path)
        self._note(None)
        self._stood = wanted
        self._stands.set()
        return True

    def _say_put_back(self, instead: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + _QUIET_S
            logger.warning("put right: %s, which %s", self._path, instead)

    def _note(self, obstacle: str | None) -> None:
        if obstacle == self.obstacle:
            return
        if obstacle is not None:
            logger.warning("not ready: %s (trying again every %g s)", obstacle, _RETRY_S)
        else:
            logger.info("%s can be written again", self._path)
        self.obstacle = obstacle
        self._told()

    @contextmanager
    def _watch(self) -> Iterator[FileWatch | None]:
        try:
            watch = FileWatch(self._path, self._wake.set)
        except OSError as error:
            logger.info("no inotify for %s (%s): looking at it every second", self._path, error.strerror)
            yield None
            return
        try:
            yield watch
        finally:
            watch.close()


def _put(path: Path, wanted: SubnetEnv, claim: Claim) -> str | None:
    """Have the file hold what is wanted; return what had become of it, ``None`` if it held that. Raises `FlannelError`.

    Blocks on the disk.
    """
    instead = _look_at(path, wanted)
    try:
        if instead is not None:
            make_directory(Path(os.path.realpath(path)).parent, subnet_env.DIRECTORY_MODE)
        claim.take()
    except OSError as error:
        if instead is not None:
            raise FlannelError(f"cannot write {path}: {error.strerror}") from None
    except FlannelError as held:
        if instead is not None:
            raise FlannelError(f"{held}, and it {instead}: give this one another --subnet-file") from None
    if instead is not None:
        subnet_env.write(path, wanted)
    return instead


def _look_at(path: Path, wanted: SubnetEnv) -> str | None:
    try:
        found = subnet_env.read(path)
    except SubnetEnvError as broken:
        return f"was broken ({broken})"
    if found == wanted:
        return None
    if found is None:
        return "was gone"
    if all(found.network_of(version) == wanted.network_of(version) for version in (4, 6)) and (
        found.subnet == wanted.subnet
    ):
        return "had other values"
    return f"said subnet {found.subnet} of {' and '.join(map(str, found.networks))}"
