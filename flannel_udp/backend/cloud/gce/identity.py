"""Who this host is, from Compute Engine's metadata service. Blocks."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass

from flannel_udp.backend.cloud.metadata import Metadata
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.model import Address

HOST = "169.254.169.254"
HOST_VARIABLE = "GCE_METADATA_HOST"
_HOST_VARIABLES = (HOST_VARIABLE, "GCE_METADATA_ROOT")  # as google-auth has them: a name or address, with a port
_MARK = ("Metadata-Flavor", "Google")
_ROOT = "/computeMetadata/v1/"
_NETWORK = re.compile(r"projects/([^/]+)/networks/([^/]+)")
_UNIVERSE = "googleapis.com"


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance and the VPC network that its interface with our address is in."""

    project: str
    zone: str
    instance: str
    network_project: str
    """The project that has the network and its routes: another one than the instance's in a shared VPC."""
    network: str
    universe: str
    """The domain of this cloud's APIs."""


def metadata_host() -> str:
    """Return where the metadata service is: its address, and no name that this host's DNS has to know."""
    return next((value for name in _HOST_VARIABLES if (value := os.environ.get(name))), HOST)


def identify(address: Address) -> Identity:
    """Ask the metadata service. Raises `CloudError`."""
    asking = _Asking(Metadata(f"http://{metadata_host()}", _MARK))
    project, number = asking.get("project/project-id"), asking.get("project/numeric-project-id")
    instance, zone = asking.get("instance/name"), asking.get("instance/zone").rpartition("/")[2]
    try:
        interfaces = json.loads(asking.get("instance/network-interfaces/?recursive=true"))
        networks = {str(each["ip"]): _NETWORK.fullmatch(each["network"]) for each in interfaces}
    except (ValueError, KeyError, TypeError):
        raise CloudError(f"the metadata service at {asking.url} has no list of network interfaces") from None
    found = networks.get(str(address))
    if found is None:
        known = ", ".join(networks)
        raise CloudError(f"no interface of {instance} has our address {address}: they have {known}: see --iface")
    owner, name = found.groups()
    return Identity(
        project=project,
        zone=zone,
        instance=instance,
        network_project=project if owner == number else owner,
        network=name,
        universe=asking.find("universe/universe-domain") or _UNIVERSE,
    )


class _Asking:
    """One conversation."""

    def __init__(self, metadata: Metadata) -> None:
        self.url = metadata.url
        self._metadata = metadata

    def get(self, path: str) -> str:
        """Return what is there. Raises `CloudError`."""
        status, text = self._ask(path)
        if status != 200:
            raise CloudError(f"the metadata service at {self.url} answers {_ROOT}{path} with status {status}")
        return text.strip()

    def find(self, path: str) -> str:
        """Return what is there, nothing where that may be."""
        status, text = self._ask(path)
        return text.strip() if status == 200 else ""

    def _ask(self, path: str) -> tuple[int, str]:
        try:
            return self._metadata.ask(_ROOT + path, dict([_MARK]))
        except CloudError as error:
            raise CloudError(f"{error}: is this an instance of Compute Engine?") from None
