"""The Docker daemon's options for this host's subnet, as flannel's mk-docker-opts.sh writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv


@dataclass(frozen=True, slots=True)
class DockerOpts:
    """What the command was asked for; with neither form both are written."""

    individual: bool = False
    combined: bool = False
    key: str = "DOCKER_OPTS"
    ip_masq: bool = True


def format_docker_opts(env: SubnetEnv, wanted: DockerOpts, environ: Mapping[str, str]) -> str:
    """Return the environment file's text.

    As in flannel, DOCKER_OPT_… of the environment are options too, in the order of their names, and the combined ones
    follow what the environment has under the same key. Raises `UsageError`.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", wanted.key):
        raise UsageError(f"-k: {wanted.key!r} is no name of a variable")
    options = {name: value for name, value in environ.items() if name.startswith("DOCKER_OPT_")}
    options["DOCKER_OPT_BIP"] = f"--bip={env.gateway}"
    options["DOCKER_OPT_MTU"] = f"--mtu={env.mtu}"
    if wanted.ip_masq:  # one of the two masquerades
        options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={'false' if env.ip_masq else 'true'}"
    both = not wanted.individual and not wanted.combined
    lines = []
    if wanted.individual or both:
        lines += [f'{name}="{value}"' for name, value in sorted(options.items())]
    if wanted.combined or both:
        before = environ.get(wanted.key, "")
        values = "".join(f" {value}" for _, value in sorted(options.items()))
        lines.append(f'{wanted.key}="{f"{before} " if before else ""}{values}"')
    return "".join(f"{line}\n" for line in lines)


def write_docker_opts(subnet_file: Path, output: Path, wanted: DockerOpts, environ: Mapping[str, str]) -> None:
    """Write the options of the subnet file. Raises `FlannelError`, also where flannel would write none and succeed."""
    text = format_docker_opts(subnet_env.require(subnet_file), wanted, environ)
    try:
        output.write_text(text)
    except OSError as error:
        raise FlannelError(f"cannot write {output}: {error.strerror}") from None
