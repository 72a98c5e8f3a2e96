"""From flags, environment and files to a connection with the API server, and to which node is ours."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import httpx2
import msgspec
import yaml
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import User, UserExec
from lightkube.core.exceptions import ConfigError

from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import UnusableFile, UsageError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube.kubeconfig import NamedCluster, read_kubeconfig
from flannel_udp.registry.kube.login import LoginCommand
from flannel_udp.registry.kube.tokens import TokenFile, is_token
from flannel_udp.registry.urls import split_url, without_user

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""To connect, to send, and between two parts of an answer."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which node is ours: its name, or the pod we run in, which knows."""

    node: str
    namespace: str = ""
    pod: str = ""


def read_identity(environ: Mapping[str, str]) -> Identity:
    """Read what a DaemonSet passes to its pods. Raises `UsageError` if neither the node nor the pod is named."""
    node, namespace, pod = (environ.get(name, "") for name in ("NODE_NAME", "POD_NAMESPACE", "POD_NAME"))
    if not node and not (namespace and pod):
        raise UsageError(
            "--kube-subnet-mgr: which node is this? Set NODE_NAME to its name in Kubernetes, or in a pod POD_NAMESPACE "
            "and POD_NAME"
        )
    return Identity(node, namespace, pod)


def open_http(options: KubeOptions, service_account: Path = Path(SERVICE_ACCOUNT)) -> httpx2.AsyncClient:
    """Return a client for the API server, not yet connected, which authenticates every request.

    As flanneld: the kubeconfig if there is one, with `--kube-api-url` as its server's address; that URL alone and
    without credentials; else the service account of the pod we run in. Raises `UsageError`, `UnusableFile` for a
    kubeconfig.
    """
    config = _read_config(options, service_account)
    user = _read_user(options, config)
    config = config._replace(user=user)
    parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(REQUEST_TIMEOUT_S))
    try:
        settings = parameters.httpx_params(config)
        _check_as_go(settings["verify"])
        if user.exec is not None and isinstance(settings["auth"], client_adapter.ExecAuth):
            settings["auth"] = _login_command(config, user.exec)
        elif user.token_file is not None:
            settings["auth"] = TokenFile(config.abs_file(user.token_file))
        if isinstance(config.cluster, NamedCluster) and config.cluster.server_name:
            settings["event_hooks"] = {"request": [partial(_expect_name, config.cluster.server_name)]}
        return _client(settings)
    except (ConfigError, OSError, TypeError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _fault(options, f"{_culprit(config)}: {_reason(error)}") from None


async def _expect_name(name: str, request: httpx2.Request) -> None:
    """Have the server's certificate be for this name, and not for that of its URL."""
    request.extensions["sni_hostname"] = name


def _check_as_go(context: ssl.SSLContext) -> None:
    """Take the certificates that flanneld and kubectl take, whichever Python has it; names and times are checked.

    From 3.13 on it is to the letter of RFC 5280: many a cluster's certificates lack the identifier of their authority's
    key. Before 3.13 a chain had to end at a root: many a cluster's authority is one that another vouches for.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _read_user(options: KubeOptions, config: SingleConfig) -> User:
    """Return who we are; what is empty is not there, as for Go. Raises as `open_http` for a token that can be none."""
    user = config.user or User()  # lightkube wants one, if only to be anonymous
    token, token_file = (user.token or "").strip() or None, user.token_file or None
    if token_file is None and token is not None and not is_token(token):
        raise _fault(options, "its token is not one line of plain ASCII")
    return msgspec.structs.replace(user, token=token, token_file=token_file)


def _client(settings: Mapping[str, Any]) -> httpx2.AsyncClient:
    """Return a client. Raises `UsageError` for a proxy that the environment names and that cannot be used.

    Its URL may hold a password, and what the libraries say of it quotes that.
    """
    try:
        return httpx2.AsyncClient(**settings)
    except (httpx2.InvalidURL, ImportError, ValueError):  # a kind of proxy that needs another package, say
        names = " or ".join(f"{name}_proxy" for name in ("http", "https", "all") if name in getproxies())
        fault = f"the environment's {names} names a proxy that cannot be used: give http://HOST:PORT"
        raise UsageError(fault) from None


def _login_command(config: SingleConfig, command: UserExec) -> LoginCommand:
    """Return a kubeconfig's login command: a path of its counts from the kubeconfig, a name is looked for in PATH."""
    return LoginCommand(command, config.abs_file(command.command) if "/" in command.command else command.command)


def _culprit(config: SingleConfig) -> str:
    """Return which of the files that TLS needs cannot be used, as far as that shows: ssl names none in its errors."""
    cluster, user = config.cluster, config.user or User()
    # Without any of its own: those that OpenSSL, and so httpx, takes for the machine's.
    machines = None if cluster.insecure or cluster.certificate_auth_data else os.environ.get("SSL_CERT_FILE")
    name, file = "certificate-authority", cluster.certificate_auth
    if not file:
        name, file = "SSL_CERT_FILE", machines
    if file and not _works(lambda path: ssl.create_default_context(cafile=path), config.abs_file(file)):
        return f"{name} {file}"
    for name, file in (("client-certificate", user.client_cert), ("client-key", user.client_key)):
        if file and not _works(lambda path: Path(path).open("rb").close(), config.abs_file(file)):
            return f"{name} {file}"
    return "the credentials"


def _works(use: Callable[[str | os.PathLike[str]], object], file: str | os.PathLike[str]) -> bool:
    try:
        use(file)
    except OSError:
        return False
    return True


class KubeFiles:
    """The kubeconfig, or the service account, and the certificates that it names: any of them may be replaced.

    Raises as `open_http` does for what is wrong with them at the start.
    """

    def __init__(self, options: KubeOptions, service_account: Path = Path(SERVICE_ACCOUNT)) -> None:
        self._options = options
        self._service_account = service_account
        self._faults = SaidOnce()
        self._stamp = self._look()  # first: what is replaced while it is read is read again
        self.first = open_http(options, service_account)
        self.by_service = _by_service(options)
        """Whether the server's address is a Service's."""

    def replaced(self) -> httpx2.AsyncClient | None:
        """Return a client made of the files as they are now, ``None`` if they are as they were; may block.

        What does not belong together, because only one half is replaced yet, is said once and waited for.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return None
        try:
            http = open_http(self._options, self._service_account)
        except UsageError as error:
            if self._faults.failed(str(error)):
                logger.warning("%s; going on with what was read before, until it is put right", error)
            return None
        self._faults.worked()
        self._stamp = stamp
        logger.info("Kubernetes: the credentials were replaced: using the new ones")
        return http

    def _look(self) -> tuple[object, ...]:
        """Return what changes with every change of a file."""
        files: list[str | os.PathLike[str] | None] = [self._options.kubeconfig_file]
        with suppress(UsageError):
            config = _read_config(self._options, self._service_account)
            user = config.user or User()
            named = (config.cluster.certificate_auth, user.client_cert, user.client_key)
            files += [config.abs_file(name) for name in named if name]
        return tuple(_stamp(file) for file in files if file is not None)


def _stamp(file: str | os.PathLike[str]) -> tuple[object, ...]:
    try:
        status = Path(file).stat()
    except OSError as error:
        return file, error.errno
    return file, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def api_server(options: KubeOptions, service_account: Path = Path(SERVICE_ACCOUNT)) -> str | None:
    """Return the API server's URL as the flags have it, without a user and a password. Raises `UsageError`.

    ``None`` for the one that a pod is told: that is a service's address, which kube-proxy replaces by the server's.
    """
    if _by_service(options):
        return None
    return without_user(_read_config(options, service_account).cluster.server)


def _by_service(options: KubeOptions) -> bool:
    """Tell whether the API server is reached as pods reach it, by its Service's address."""
    return options.kubeconfig_file is None and not options.api_url


def _read_config(options: KubeOptions, service_account: Path) -> SingleConfig:
    try:
        if options.kubeconfig_file is not None:
            config: SingleConfig | None = read_kubeconfig(options.kubeconfig_file)
        elif options.api_url:
            config = KubeConfig.from_server(options.api_url).get()
        else:
            config = KubeConfig.from_service_account(service_account).get()
    except (AttributeError, ConfigError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        hint = "" if options.kubeconfig_file else "; outside a pod give --kubeconfig-file or --kube-api-url"
        raise _fault(options, f"{_reason(error)}{hint}") from None
    if config is None:  # cannot be: `get` returns its default only if it is given one
        raise _fault(options, "no current-context")
    if options.api_url:
        config.cluster.server = options.api_url
    try:
        split_url(config.cluster.server)
        httpx2.URL(config.cluster.server)
    except (ValueError, httpx2.InvalidURL):
        shown = config.cluster.server.rpartition("@")[2]  # a password may stand in front of the sign
        raise _fault(options, f"the server {shown!r} is no http or https URL") from None
    return config


def _source(options: KubeOptions) -> str:
    if options.kubeconfig_file is not None:
        return f"--kubeconfig-file {options.kubeconfig_file}"
    return f"--kube-api-url {options.api_url}" if options.api_url else "the pod's service account"


def _fault(options: KubeOptions, what: str) -> UsageError:
    """Return the error about where the connection is described: a kubeconfig may be put right while we wait."""
    kind = UsageError if options.kubeconfig_file is None else UnusableFile
    return kind(f"{_source(options)}: {what}")


def _reason(error: Exception) -> str:
    """Say what is wrong without quoting the file: there are credentials in it."""
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            return f"no YAML: line {mark.line + 1}"
        case ConfigError() | msgspec.ValidationError():
            return re.sub(r"^\[Errno \d+\] ", "", str(error))  # lightkube hands on what the system said
        case KeyError():
            return f"{error.args[0]!r} is not there"
        case ssl.SSLError():
            return f"not PEM, or a key that is another certificate's ({error.reason or 'unreadable'})"
        case OSError(strerror=str() as text):
            return f"{error.filename}: {os.fspath(text)}" if error.filename else os.fspath(text)
        case _:
            return "not what a kubeconfig looks like"
