"""What the delegate was given for a container, kept from ADD to DEL: dataDir/CONTAINERID, as flannel's plugin has it.

A file is the delegate's configuration, which flannel's own plugin can read too, and one key more: the interface, which
GC needs and no runtime tells then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.cni.errors import DECODING_FAILURE, INVALID_CONFIG, IO_FAILURE, CniError
from flannel_udp.cni.request import Document
from flannel_udp.files.atomic import draft_of, write_atomically

_OURS = "flannelUdp"


class Damaged(CniError):
    """The file cannot be understood."""

    def __init__(self, path: Path) -> None:
        super().__init__(DECODING_FAILURE, f"the state file {path} is damaged: it is no delegate's configuration")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One container on one network: its interface, and the configuration that the delegate was given.

    What flannel's own plugin kept says nothing of the interface: then it is empty.
    """

    container_id: str
    ifname: str
    conf: Document

    def is_of(self, network: str, ifname: str) -> bool:
        """Tell whether this is the container's attachment to the network by that interface, as far as was kept."""
        return self.conf.get("name") == network and self.ifname in (ifname, "")

    def is_at(self, network: str, ifname: str) -> bool:
        """Tell whether a DEL means this: a container has one interface of a name, whatever its network's name is now.

        Only where no interface was kept does the network's name tell.
        """
        return self.ifname == ifname if self.ifname else self.is_of(network, ifname)


def save(data_dir: Path, attachment: Attachment) -> bool:
    """Write the file (0600) and tell whether there was none. Raises `CniError`, also if it is another attachment's."""
    path = data_dir / attachment.container_id
    is_first = _is_first(path, attachment)
    document = {**attachment.conf, _OURS: {"ifname": attachment.ifname}}
    try:
        write_atomically(path, json.dumps(document).encode(), mode=0o600, directory_mode=0o700)
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot write the state file {path}: {error.strerror}") from None
    return is_first


def _is_first(path: Path, attachment: Attachment) -> bool:
    """A file holds one attachment: a second network would make the first one's DEL a DEL of the second."""
    try:
        present = load(path.parent, path.name)
    except Damaged:
        return False
    if present and not present.is_of(attachment.conf["name"], attachment.ifname):
        raise CniError(
            INVALID_CONFIG,
            f"container {path.name} is attached to network {present.conf.get('name')} as {present.ifname or '?'}, and "
            f"{path.parent} holds one attachment a container: give the other network a dataDir of its own",
        )
    return present is None


def load(data_dir: Path, container_id: str) -> Attachment | None:
    """Return what was saved, None for nothing. Raises `CniError`; `Damaged` if it cannot be understood."""
    path = data_dir / container_id
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot read the state file {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged(path) from None
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        raise Damaged(path)
    ours = document.pop(_OURS, None)
    ifname = ours.get("ifname") if isinstance(ours, dict) else None
    return Attachment(container_id, ifname if isinstance(ifname, str) else "", document)


def remove(data_dir: Path, container_id: str) -> None:
    """Remove the file, and what a killed ADD left of one; that there is none is fine. Raises `CniError`."""
    path = data_dir / container_id
    try:
        draft_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot remove the state file {path}: {error.strerror}") from None


def container_ids(data_dir: Path) -> Iterator[str]:
    """Yield the containers with a file. Raises `CniError`."""
    try:
        names = sorted(path.name for path in data_dir.iterdir() if path.is_file())
    except FileNotFoundError:
        return
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot list {data_dir}: {error.strerror}") from None
    # No id begins with a dot; files that are being written do.
    yield from (name for name in names if not name.startswith("."))
