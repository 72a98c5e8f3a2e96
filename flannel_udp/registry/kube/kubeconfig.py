"""A kubeconfig as kubectl and flanneld read it: lightkube passes over what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster
from lightkube.core.exceptions import ConfigError

_OF_CLUSTERS = {"proxy-url": "set https_proxy in the agent's environment"}
_OF_USERS = dict.fromkeys(("as", "as-uid", "as-groups", "as-user-extra"), "give us a user of our own")
"""What Go's client obeys and we do not, and what does instead."""


class NamedCluster(Cluster, omit_defaults=True):
    """A cluster whose server's certificate may be for another name than its URL has."""

    server_name: str | None = msgspec.field(name="tls-server-name", default=None)


def read_kubeconfig(file: Path) -> SingleConfig:
    """Return what the current context says, its cluster a `NamedCluster`.

    Raises `ConfigError` for what we do not obey, or what the system, YAML or lightkube's models have against it.
    """
    path = file.expanduser()
    if not path.is_file():
        raise ConfigError(f"Configuration file {file} not found")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = KubeConfig.from_dict(document, fname=path).get()
    if config is None:  # cannot be: `get` returns its default only if it is given one
        raise ConfigError("no current-context")
    context = config.context
    cluster = _named(document, "cluster", context.cluster)
    _refuse(cluster, _OF_CLUSTERS)
    if context.user:
        _refuse(_named(document, "user", context.user), _OF_USERS)
    return config._replace(cluster=msgspec.convert(cluster, NamedCluster))


def _named(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """Return a cluster or a user as it is written; of several with one name the last one counts, as for lightkube."""
    found: Mapping[str, Any] = {each["name"]: each[kind] for each in document[f"{kind}s"]}[name]
    return found


def _refuse(written: Mapping[str, Any], unsupported: Mapping[str, str]) -> None:
    for key, instead in unsupported.items():
        if written.get(key):
            raise ConfigError(f"{key} is not supported: {instead}")
