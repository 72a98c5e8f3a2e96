"""From flags, environment and files to a connection with the API server, and to which node is ours."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import yaml
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from flannel_udp.errors import UsageError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.urls import split_url

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
    without credentials; else the service account of the pod we run in. Raises `UsageError`.
    """
    for chatty in ("httpx2", "httpcore2"):  # a line for every request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = _read_config(options, service_account)
    config = config._replace(user=config.user or User())  # lightkube wants one, if only to be anonymous
    try:
        split_url(config.cluster.server)
    except ValueError:
        shown = config.cluster.server.rpartition("@")[2]  # a password may stand in front of the sign
        raise UsageError(f"{_source(options)}: the server {shown!r} is no http or https URL") from None
    parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(REQUEST_TIMEOUT_S))
    try:
        return client_adapter.AsyncClient(config, parameters)
    except (ConfigError, OSError, TypeError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(f"{_source(options)}: the credentials: {_reason(error)}") from None


def _read_config(options: KubeOptions, service_account: Path) -> SingleConfig:
    try:
        if options.kubeconfig_file is not None:
            config = KubeConfig.from_file(options.kubeconfig_file).get()
        elif options.api_url:
            config = KubeConfig.from_server(options.api_url).get()
        else:
            config = KubeConfig.from_service_account(service_account).get()
    except (AttributeError, ConfigError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        hint = "" if options.kubeconfig_file else "; outside a pod give --kubeconfig-file or --kube-api-url"
        raise UsageError(f"{_source(options)}: {_reason(error)}{hint}") from None
    if config is None:  # cannot be: `get` returns its default only if it is given one
        raise UsageError(f"{_source(options)}: no current-context")
    if options.api_url:
        config.cluster.server = options.api_url
    return config


def _source(options: KubeOptions) -> str:
    if options.kubeconfig_file is not None:
        return f"--kubeconfig-file {options.kubeconfig_file}"
    return f"--kube-api-url {options.api_url}" if options.api_url else "the pod's service account"


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
            return f"{error.filename or 'cannot be read'}: {os.fspath(text)}"
        case _:
            return "not what a kubeconfig looks like"
