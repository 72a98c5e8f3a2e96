"""The Docker daemon's options for this host's subnet, as flannel's mk-docker-opts.sh writes them.

flannel's script writes nothing of IPv6, and so is it here: Docker's `--ipv6 --fixed-cidr-v6` are left to people.
"""

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


@dataclass(frozen=True, slots=True)
class DockerFile:
    """The environment file's text, and what people should know.

    That is a line for each option of the user's that contradicts ours, where ours is written; and that of a subnet
    without IPv4 no option tells Docker.
    """

    text: str
    warnings: tuple[str, ...]


_SETTING = re.compile(r"(?:^|\s+)(?P<word>--(?P<name>bip|mtu|ip-masq)(?:=\S*|(?<=bip|mtu)\s+\S+)?)(?=\s|$)")
"""An option that we write, as a user may write it: `--bip=A`, `--bip A`, `--ip-masq`."""
_BRIDGE = re.compile(r"(?:^|\s)(?:-b|--bridge)(?:=|\s+)(?P<name>[^\s-]\S*)")


def format_docker_opts(env: SubnetEnv, wanted: DockerOpts, environ: Mapping[str, str], former: str = "") -> DockerFile:
    """Return the environment file's text.

    As in flannel, DOCKER_OPT_… of the environment are options too, in the order of their names, and the combined ones
    follow what the environment has under the same key. Both may be what we wrote before, `former` in a file: a unit may
    load the file that it has made. Raises `UsageError`.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", wanted.key):
        raise UsageError(f"-k: {wanted.key!r} is no name of a variable")
    options = {name: value for name, value in environ.items() if name.startswith("DOCKER_OPT_")}
    warnings: list[str] = []
    if (gateway := env.gateway_of(4)) is not None:
        options["DOCKER_OPT_BIP"] = f"--bip={gateway}"
    else:
        options.pop("DOCKER_OPT_BIP", None)  # of an earlier run
        by_hand = f"--ipv6 --fixed-cidr-v6={env.subnet.v6}"
        warnings.append(f"this host has no IPv4 subnet, so no --bip is written: give Docker {by_hand} yourself")
    options["DOCKER_OPT_MTU"] = f"--mtu={env.mtu}"
    options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={'false' if env.ip_masq else 'true'}"  # one of the two masquerades
    if not wanted.ip_masq:
        del options["DOCKER_OPT_IPMASQ"]
    both = not wanted.individual and not wanted.combined
    lines = []
    if wanted.individual or both:
        lines += [f'{name}="{value}"' for name, value in sorted(options.items())]
    if wanted.combined or both:
        written = f"{former} {' '.join(value for name, value in environ.items() if name.startswith('DOCKER_OPT_'))}"
        before, contradictions = _users_own(environ.get(wanted.key, ""), list(options.values()), written)
        warnings += [f"{wanted.key} has {fault}" for fault in contradictions]
        values = "".join(f" {value}" for _, value in sorted(options.items()))
        lines.append(f'{wanted.key}="{f"{before} " if before else ""}{values}"')
    return DockerFile("".join(f"{line}\n" for line in lines), tuple(warnings))


def _users_own(text: str, ours: list[str], written: str) -> tuple[str, list[str]]:
    """Return what remains of the user's options without those that we write, and what is wrong with them.

    `written` is what we wrote before: what of that is in `text` is no contradiction, but our own earlier word.
    """
    contradictions = []
    for found in _SETTING.finditer(text):
        word, name = found["word"], found["name"]
        if not _holds(" ".join(ours), word) and not _holds(written, word):
            instead = next(
                (f"{option} is written" for option in ours if option.startswith(f"--{name}=")), "it is left out"
            )
            contradictions.append(f"{word} in the environment: {instead} instead")
    if bridge := _BRIDGE.search(text):
        contradictions.append(f"--bridge {bridge['name']} in the environment: Docker takes no --bip beside it")
    rest = _SETTING.sub("", text)
    for option in ours:
        rest = re.sub(rf"(?:^|\s+){re.escape(option)}(?=\s|$)", "", rest)
    return rest if rest.strip() else "", contradictions


def _holds(text: str, word: str) -> bool:
    """Tell whether the text has the word, between blanks or the quotes of a file."""
    return re.search(rf'(?:^|[\s"]){re.escape(word)}(?:[\s"]|$)', text) is not None


def write_docker_opts(
    subnet_file: Path, output: Path, wanted: DockerOpts, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """Write the options of the subnet file; return what people should know.

    Raises `FlannelError`, also where flannel would write none and succeed.
    """
    file = format_docker_opts(subnet_env.require(subnet_file), wanted, environ, _read_former(output))
    try:
        output.write_text(file.text, encoding="utf-8")
    except OSError as error:
        raise FlannelError(f"cannot write {output}: {error.strerror}") from None
    return file.warnings


def _read_former(output: Path) -> str:
    """Return what an earlier run wrote; nothing for what is no regular file, as /dev/stdout."""
    try:
        return output.read_text(errors="replace") if output.is_file() else ""
    except OSError:
        return ""
