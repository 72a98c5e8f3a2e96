"""A kubeconfig's login command (`exec`): it prints the token with which we ask, as for kubectl.

lightkube's own does not know the interface's stable version, tells the command nothing of what it is asked for, waits
for it without end, and takes whatever it prints for a token.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

from lightkube.config.models import UserExec
from lightkube.core.exceptions import ConfigError

from flannel_udp.registry.kube.tokens import Bearer, is_token

LOGIN_S = 15.0
"""How long the command may take; a request has longer, so that it is the command that is named."""
_KILLED_S = 0.5
"""How long what was killed may take to be gone, at most: it hangs in the kernel otherwise."""
VERSIONS = tuple(f"client.authentication.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))


class LoginCommand(Bearer):
    """Bears the token that the command prints.

    `program` is where it is. Raises `ConfigError` for a version that we do not know.
    """

    def __init__(self, command: UserExec, program: str | os.PathLike[str]) -> None:
        if command.apiVersion not in VERSIONS:
            raise ConfigError(f"the login command's apiVersion {command.apiVersion!r} is none of {', '.join(VERSIONS)}")
        self._command = command
        self._program = program
        self._groups: set[int] = set()  # of processes that the command has started

    async def _token(self) -> str:
        return self._token_in(await self._run())

    async def _run(self) -> bytes:
        """Return what the command prints. Raises `ConfigError`; then, and when we are cancelled, it is ended."""
        process = self._start()
        done = False
        try:
            printed, said = await asyncio.to_thread(process.communicate, None, LOGIN_S)
            done = True
        except TimeoutExpired:
            raise ConfigError(f"{self._named} is not done after {LOGIN_S:g} s") from None
        finally:
            if not done:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it has started: that may hold the pipes
                with suppress(TimeoutExpired):
                    process.wait(_KILLED_S)
            self._reap(process.pid)
        if process.returncode:
            raise ConfigError(f"{self._named} returned {process.returncode}: {said.decode(errors='replace')}")
        return printed

    def _reap(self, group: int) -> None:
        """Let go what has ended of that group, and of former ones: as process 1 we have the command's orphans."""
        self._groups.add(group)
        for each in tuple(self._groups):
            try:
                while os.waitpid(-each, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:  # no child of ours is in there
                self._groups.remove(each)

    def _start(self) -> Popen[bytes]:
        """Start it: half a millisecond, once for a token.

        Not by asyncio: uvloop's child keeps all our descriptors, the pipes among them, so that whatever the command
        leaves running in the background would keep us waiting.
        """
        command = self._command
        asked = {"kind": "ExecCredential", "apiVersion": command.apiVersion, "spec": {"interactive": False}}
        # Our own settings (a password may be among them) are not its business.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}
        environ |= {variable.name: variable.value for variable in command.env or ()}
        try:
            return Popen(
                [self._program, *(command.args or ())],
                env=environ | {"KUBERNETES_EXEC_INFO": json.dumps(asked)},
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # a NUL in an argument, say
            raise ConfigError(f"{self._named} cannot be run: {getattr(error, 'strerror', None) or error}") from None

    def _token_in(self, printed: bytes) -> str:
        """Return the token that is in there; nothing of it is told, as it may be secret."""
        try:
            status = json.loads(printed)["status"]
            token = status.get("token")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise ConfigError(f"{self._named} printed no ExecCredential with a status") from None
        if not is_token(token):
            hint = ", but a client certificate, which we do not take" if "clientCertificateData" in status else ""
            raise ConfigError(f"{self._named} printed no token{hint}")
        return token

    @property
    def _named(self) -> str:
        return f"the kubeconfig's login command {self._command.command}"
