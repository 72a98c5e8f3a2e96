"""A VPC network of Google's for tests: the API's server and the hosts' metadata services, each a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from tests.support.gce_server import TOKEN
from tests.support.patience import PATIENCE_S
from tests.support.served import PROXIES, Served, at_once, metadata_served, served
from tests.support.vpc_router import in_middle, metadata_on, router_in

PROJECT, NUMBER, ZONE = "my-project", "123456789012", "europe-west1-b"
METADATA = "169.254.169.254"
_HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class GceVpc(Served):
    """The network "default" of "my-project". A host's name in a route is what the agent calls it, too."""

    type = "gce"
    table = "networks/default"

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        super().__init__(address, port, inside)
        self.environment = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": self.url, "HOME": "/nonexistent"}
        self.addresses: dict[str, str] = {}
        """Of hosts, by their name in a route."""
        self.targets: tuple[str, ...] = ()

    def add_host(self, address: str, *, may_forward: bool = True, public: str | None = None) -> dict[str, Any]:
        """Start an instance with that address, and return what its metadata service knows."""
        name = "h" + address.rpartition(".")[2]
        target = f"{PROJECT}/{ZONE}/{name}"
        interface = {"networkIP": address, **({"accessConfigs": [{"natIP": public}]} if public else {})}
        instance = {"name": name, "status": "RUNNING", "networkInterfaces": [interface]}
        # What is off is not there at all.
        self.order("/test/instances", {target: {**instance, **({"canIpForward": True} if may_forward else {})}})
        self.addresses[target] = address
        return {
            "project": PROJECT,
            "number": NUMBER,
            "zone": ZONE,
            "name": name,
            "interfaces": [{"ip": address, "network": f"projects/{NUMBER}/networks/default"}],
            "token": TOKEN,
        }

    def stop_host(self, target: str) -> None:
        """Stop an instance: routes to it lead nowhere."""
        self.order("/test/instances", {target: {"name": target.rpartition("/")[2], "status": "TERMINATED"}})

    def stranger(self, address: str) -> str:
        """See `cloud_scenario.Cloud`."""
        return target_of(self.add_host(address))

    def whole_routes(self, project: str = PROJECT) -> list[dict[str, Any]]:
        """Return all routes as the API has them."""
        found, page = [], {"nextPageToken": "0"}
        while token := page.get("nextPageToken"):
            page = self.call("GET", f"/projects/{project}/global/routes?pageToken={token}", headers=_HEADERS)
            found += page["items"]
        return found

    def routes(self) -> dict[str, str]:
        """See `cloud_scenario.Cloud`: those to instances."""
        return {
            route["destRange"]: "/".join(route["nextHopInstance"].split("/")[-5::2])
            for route in self.whole_routes()
            if "nextHopInstance" in route
        }

    def lead(self, destination: str, target: str, name: str | None = None, network: str = "default") -> None:
        """Make a route with flannel's name, or another one."""
        project, zone, instance = target.split("/")
        route = {
            "name": name or name_of(destination),
            "network": f"projects/{PROJECT}/global/networks/{network}",
            "destRange": destination,
            "nextHopInstance": f"projects/{project}/zones/{zone}/instances/{instance}",
        }
        self._done(self.call("POST", f"/projects/{PROJECT}/global/routes", route, _HEADERS))

    def unlead(self, destination: str) -> None:
        """Delete a route of that name."""
        path = f"/projects/{PROJECT}/global/routes/{name_of(destination)}"
        self._done(self.call("DELETE", path, headers=_HEADERS))

    def clear(self) -> None:
        """Delete all routes to instances, and wait until they are gone."""
        until_s = time.monotonic() + PATIENCE_S
        while found := [route["name"] for route in self.whole_routes() if "nextHopInstance" in route]:
            assert time.monotonic() < until_s
            for name in found:
                self.call("DELETE", f"/projects/{PROJECT}/global/routes/{name}", headers=_HEADERS)
            time.sleep(0.05)

    def _done(self, operation: Mapping[str, Any]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while operation["status"] != "DONE":
            assert time.monotonic() < until_s
            time.sleep(0.05)
            path = f"/projects/{PROJECT}/global/operations/{operation['name']}"
            operation = self.call("GET", path, headers=_HEADERS)

    def led(self) -> dict[str, str]:
        """See `cloud_scenario.Cloud`: what leads to instances that take it."""
        return {
            route["destRange"]: self.addresses["/".join(route["nextHopInstance"].split("/")[-5::2])]
            for route in self.whole_routes()
            if "nextHopInstance" in route and "warnings" not in route
        }


def name_of(destination: str) -> str:
    """Return the name of a route as flannel makes it."""
    return "flannel-" + destination.replace(".", "-").replace("/", "-")


def target_of(host: Mapping[str, Any]) -> str:
    """Return the name in a route of what `GceVpc.add_host` returned."""
    return f"{host['project']}/{host['zone']}/{host['name']}"


@contextmanager
def gce_around(lab: Lab) -> Iterator[GceVpc]:
    """Have a lab in such a network for the block."""
    with ExitStack() as stack:
        port = stack.enter_context(served("gce_server", str(UNDERLAY_GATEWAY), before=in_middle(lab)))
        vpc = GceVpc(str(UNDERLAY_GATEWAY), port, partial(call_inside, lab.net.namespace))
        for host in lab.hosts:
            said = vpc.add_host(str(host.underlay))
            vpc.targets += (target_of(said),)
            stack.enter_context(metadata_on(host, "gce_metadata_server", METADATA, said))
        stack.enter_context(router_in(lab, vpc.led))
        yield vpc


@contextmanager
def gce_on_loopback() -> Iterator[GceVpc]:
    """Have such a network for the block, by a server of its own."""
    with served("gce_server", "127.0.0.1") as port:
        yield GceVpc("127.0.0.1", port)


@contextmanager
def on_instance(vpc: GceVpc, said: Mapping[str, Any], patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make this process the instance whose metadata service says that; yields that one's URL."""
    from google.auth.compute_engine import _metadata

    with metadata_served("gce_metadata_server", said) as url:
        at = url.removeprefix("http://")
        for name in (*PROXIES, "GOOGLE_APPLICATION_CREDENTIALS"):
            patch.delenv(name, raising=False)
        patch.setattr("flannel_udp.backend.cloud.metadata.TIMEOUT_S", PATIENCE_S)
        patch.setenv("HOME", "/nonexistent")
        patch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
        patch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", vpc.url)
        patch.setenv("GCE_METADATA_HOST", at)
        patch.setenv("GCE_METADATA_IP", at)
        patch.setattr(_metadata, "_GCE_METADATA_HOST", at)  # it was read when that was imported
        yield url
