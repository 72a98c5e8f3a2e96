"""What gce asks of Compute Engine, and what it says when that says no: with Google's library, against our server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_udp.backend.cloud import refusals
from flannel_udp.backend.cloud.gce import GceProvider, identity, rest
from flannel_udp.backend.cloud.provider import Account, CloudError, CloudRoute, Leads
from flannel_udp.errors import ConfigError
from flannel_udp.lab.netns import wait_until
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config
from tests.support.gce_server import ALL_RIGHTS, TOKEN
from tests.support.gce_vpc import PROJECT, ZONE, GceVpc, gce_on_loopback, name_of, on_instance, target_of
from tests.support.patience import PATIENCE_S
from tests.support.served import UNUSABLE_PROXIES, external

AT, OTHER = IPv4Network("10.1.15.0/24"), IPv4Network("10.1.16.0/24")
TABLE = "networks/default"
ROLE = Path(__file__).parents[2] / "examples" / "cloud" / "gce-role.yaml"
ROLE_NAME = "examples/cloud/gce-role.yaml"
SET_SCOPES = "stop it, and gcloud compute instances set-service-account INSTANCE --scopes=cloud-platform"
FULL = "the VPC network has as many static routes as it may have: ask Google to raise the quota"
GIVE = f"give it to the instance's service account, see {ROLE_NAME}"


@pytest.fixture(scope="module")
def vpc() -> Iterator[GceVpc]:
    with gce_on_loopback() as vpc:
        yield vpc


@pytest.fixture(scope="module")
def host(vpc: GceVpc) -> dict[str, Any]:
    return vpc.add_host("192.0.2.1")


@pytest.fixture(scope="module")
def instance(vpc: GceVpc, host: dict[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, on_instance(vpc, host, patch):
        yield


@pytest.fixture(autouse=True)
def here(vpc: GceVpc, instance: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards nothing fails, and there are no routes of an overlay."""
    monkeypatch.setattr(rest, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(rest, "LAST_PAUSE_S", 0.02)
    yield
    vpc.fail()
    vpc.order("/test/failures", [])
    vpc.order("/test/rights", ALL_RIGHTS)
    vpc.clear()


def config_of(network: str = "10.1.0.0/16", **options: Any) -> NetworkConfig:
    return parse_config(json.dumps({"Network": network, "Backend": {"Type": "gce", **options}})).config


def connect(address: str = "192.0.2.1", **options: Any) -> Account:
    return GceProvider().connect(config_of(**options), external(address))


def fault_of(**options: Any) -> str:
    """Return what is said where asking for the tables is refused."""
    with pytest.raises((CloudError, ConfigError)) as caught, closing(connect(**options)) as account:
        account.tables()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def overlay_routes(account: Account) -> list[CloudRoute]:
    return [route for table in account.tables() for route in table.routes if str(route.destination).startswith("10.1.")]


# --- what there is ------------------------------------------------------------------------------------------------


def test_the_host_is_the_instance_that_the_metadata_service_names() -> None:
    with closing(connect()) as account:
        assert account.here == f"{PROJECT}/{ZONE}/h1 in my-project's network default"


def test_a_route_is_made_as_flannel_makes_it_and_read_back(vpc: GceVpc, host: dict[str, Any]) -> None:
    with closing(connect()) as account:
        account.create(TABLE, AT)  # done once it returns
        assert overlay_routes(account) == [CloudRoute(AT, target_of(host), Leads.HERE)]
    (made,) = [route for route in vpc.whole_routes() if route["destRange"] == str(AT)]
    assert (made["name"], made["priority"]) == ("flannel-10-1-15-0-24", 1000)
    assert made["network"].endswith("/projects/my-project/global/networks/default")


def test_a_route_is_replaced_by_a_delete_and_then_an_insert(vpc: GceVpc, host: dict[str, Any]) -> None:
    vpc.lead(str(AT), f"{PROJECT}/{ZONE}/gone")
    asked = len(vpc.asked())
    with closing(connect()) as account:
        account.tables()
        account.replace(TABLE, AT)
        assert overlay_routes(account) == [CloudRoute(AT, target_of(host), Leads.HERE)]
        changes = [action for action in vpc.asked()[asked:] if action in ("routes.delete", "routes.insert")]
        assert changes == ["routes.delete", "routes.insert"]
        account.tables()
        vpc.unlead(str(AT))
        account.replace(TABLE, AT)  # somebody else has deleted it since
        assert vpc.routes() == {str(AT): target_of(host)}


def test_a_removed_route_is_gone_as_soon_as_google_has_done_it(vpc: GceVpc) -> None:
    with closing(connect()) as account:
        account.create(TABLE, AT)
        account.tables()
        asked = len(vpc.asked())
        account.remove(TABLE, AT)
        account.remove(TABLE, AT)  # it is being deleted: resourceNotReady
        assert vpc.asked()[asked:] == ["routes.delete"] * 2  # nothing was waited for
        while str(AT) in vpc.routes():
            time.sleep(0.05)
        account.remove(TABLE, AT)  # it is gone, as it was to be


def test_what_is_deleted_is_the_route_that_was_read_and_none_that_came_in_its_place(vpc: GceVpc) -> None:
    vpc.lead(str(AT), f"{PROJECT}/{ZONE}/gone")
    peer = target_of(vpc.add_host("192.0.2.7"))
    with closing(connect()) as account:
        account.tables()
        vpc.unlead(str(AT))
        vpc.lead(str(AT), peer)
        account.remove(TABLE, AT)
        vpc.lead(str(OTHER), peer)  # whatever was begun before is done when this is
        assert vpc.routes() == {str(AT): peer, str(OTHER): peer}
        with pytest.raises(CloudError):
            account.replace(TABLE, AT)
        vpc.unlead(str(OTHER))
        assert vpc.routes() == {str(AT): peer}


def test_routes_are_told_apart_by_name_and_by_where_they_lead(vpc: GceVpc, host: dict[str, Any]) -> None:
    peer = target_of(vpc.add_host("192.0.2.7", public="203.0.113.7"))
    off = target_of(vpc.add_host("192.0.2.8", may_forward=False))
    stopped = target_of(vpc.add_host("192.0.2.9"))
    vpc.stop_host(stopped)
    gone = f"{PROJECT}/{ZONE}/gone"
    for number, target in enumerate((peer, off, stopped, gone)):
        vpc.lead(f"10.1.{number}.0/24", target)
    vpc.lead("10.1.9.0/24", peer, name="an-appliance")
    vpc.lead("10.1.10.0/24", target_of(host), network="second")
    with closing(connect()) as account:
        assert overlay_routes(account) == [
            CloudRoute(IPv4Network("10.1.0.0/24"), peer, Leads.TO_HOST),
            CloudRoute(IPv4Network("10.1.1.0/24"), off, Leads.TO_HOST, blackhole=True),
            CloudRoute(IPv4Network("10.1.2.0/24"), stopped, Leads.TO_HOST, blackhole=True),
            CloudRoute(IPv4Network("10.1.3.0/24"), gone, Leads.TO_HOST, blackhole=True),
            CloudRoute(IPv4Network("10.1.9.0/24"), peer, Leads.ELSEWHERE),
        ]
        (table,) = account.tables()
        assert table.n_counted == 6  # with that to the internet, and without the subnet's own
        others = {(str(route.destination), route.target) for route in table.routes[:2]}
        assert others == {("192.0.2.0/24", "default"), ("0.0.0.0/0", "default-internet-gateway")}
        addresses = {IPv4Address("192.0.2.7"), IPv4Address("203.0.113.7")}
        assert account.addresses_of([peer, gone]) == {peer: frozenset(addresses)}


def test_packets_may_pass_an_instance_with_can_ip_forward_and_else_it_is_said_how(vpc: GceVpc) -> None:
    with closing(connect()) as account:
        assert not account.permit()
        vpc.add_host("192.0.2.1", may_forward=False)
        with pytest.raises(CloudError) as caught:
            account.permit()
    vpc.add_host("192.0.2.1")
    assert str(caught.value) == (
        "canIpForward of h1 is off, so packets with pods' addresses do not pass. To switch it on while it runs: "
        "gcloud compute instances export h1 --project=my-project --zone=europe-west1-b --destination=it.yaml, then "
        "canIpForward: true in that file, then gcloud compute instances update-from-file h1 --project=my-project "
        "--zone=europe-west1-b --source=it.yaml --most-disruptive-allowed-action=REFRESH"
    )


# --- which network ------------------------------------------------------------------------------------------------


def test_a_shared_vpc_s_routes_are_the_host_project_s(
    vpc: GceVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect(Project="other-project")) as account:
        assert account.here.endswith(" in other-project's network default")
    interface = {"ip": "192.0.2.1", "network": "projects/other-project/networks/default"}
    with on_instance(vpc, {**host, "interfaces": [interface]}, monkeypatch), closing(connect()) as account:
        assert account.here.endswith(" in other-project's network default")
        account.create(TABLE, OTHER)
        account.tables()
        assert str(OTHER) in {route["destRange"] for route in vpc.whole_routes("other-project")}
        account.remove(TABLE, OTHER)


def test_another_network_than_the_interface_s_is_refused() -> None:
    connect(VpcNetwork="default").close()
    assert fault_of(VpcNetwork="second") == (
        "Backend.VpcNetwork is second, and the interface with our address is in default: correct it, or see --iface"
    )


def test_a_wrong_project_is_named(vpc: GceVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault_of(Project="no-such-project") == (
        "routes.list finds nothing: The resource 'projects/no-such-project/global/routes' was not found: "
        "correct Backend.Project, or leave it out"
    )
    interface = {"ip": "192.0.2.1", "network": "projects/123456789012/networks/third"}
    with on_instance(vpc, {**host, "interfaces": [interface]}, monkeypatch):
        assert fault_of() == (
            "project my-project has no network third with a subnet, and this instance is in it: "
            "correct Backend.Project, or leave it out"
        )


def test_a_network_that_overlaps_a_subnet_s_range_is_refused() -> None:
    assert fault_of(network="192.0.0.0/16") == (
        "Network 192.0.0.0/16 overlaps 192.0.2.0/24 of default, which the VPC routes itself: choose another Network"
    )


def test_an_address_that_no_interface_of_the_instance_has_is_named() -> None:
    with pytest.raises(CloudError) as caught:
        connect("192.0.2.99")
    assert str(caught.value) == ("no interface of h1 has our address 192.0.2.99: they have 192.0.2.1: see --iface")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["google.auth", "requests"])
def test_without_the_library_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "find_spec", lambda name: None if name == package else find_spec(name))
    assert fault_of() == f"Backend.Type is gce, and {package} is not installed: pip install 'flannel-udp[gce]'"


def test_no_metadata_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    assert fault_of() == (
        "no metadata service at http://127.0.0.1:9: Connection refused: is this an instance of Compute Engine?"
    )


def test_what_is_not_google_s_metadata_service_is_told_by_its_answer(
    vpc: GceVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_instance(vpc, {**host, "unmarked": True}, monkeypatch) as url:
        assert fault_of() == (
            f"what answers at {url} is no metadata service: no Metadata-Flavor: Google: "
            "is this an instance of Compute Engine?"
        )


def test_an_instance_without_a_service_account_is_named(
    vpc: GceVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_instance(vpc, {**host, "token": None}, monkeypatch):
        assert fault_of().startswith(
            f"no credentials for Google: give the instance a service account, see {ROLE_NAME} ("
        )


def test_no_proxy_is_asked_for_the_metadata_service_nor_for_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert identity.identify(IPv4Address("192.0.2.1")).instance == "h1"
    assert fault_of() == (
        "the proxy that HTTPS_PROXY or HTTP_PROXY names does not let routes.list pass: correct it, or NO_PROXY"
    )


@pytest.mark.parametrize("proxy", UNUSABLE_PROXIES)
def test_a_proxy_s_password_is_not_told(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with caplog.at_level(1):
        line = fault_of()
    assert "geheim" not in line + caplog.text


def test_an_api_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "http://127.0.0.1:9/compute/v1")
    assert fault_of() == (
        "http://127.0.0.1:9/compute/v1/ does not answer routes.list: may this host reach it, by Private Google Access "
        "or Cloud NAT?"
    )


def test_by_itself_the_api_is_that_of_the_instance_s_universe(
    vpc: GceVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identity.identify(IPv4Address("192.0.2.1")).universe == "googleapis.com"
    with on_instance(vpc, {**host, "universe": "example.goog"}, monkeypatch):
        monkeypatch.delenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE")
        universe = identity.identify(IPv4Address("192.0.2.1")).universe
        with closing(rest.Rest(universe)) as api:
            assert api.url == "https://compute.example.goog/compute/v1/"


REFUSALS = [
    (
        {"status": 403, "code": "forbidden", "message": "Required 'compute.routes.list' permission for 'projects/p'"},
        f"no right to compute.routes.list on projects/p: {GIVE}",
    ),
    ({"status": 403, "code": "forbidden", "message": "Forbidden"}, f"no right to routes.list: {GIVE}"),
    (
        {"status": 403, "code": "insufficientPermissions", "message": "insufficient authentication scopes"},
        f"the instance's access scopes do not allow routes.list: {SET_SCOPES}",
    ),
    (
        {"status": 403, "code": "accessNotConfigured"},
        "the project has no Compute Engine API: gcloud services enable compute.googleapis.com",
    ),
    (
        {"status": 401, "code": "authError"},
        f"Google does not take our credentials (authError): give the instance a service account, see {ROLE_NAME}",
    ),
    ({"status": 400, "code": "odd", "message": "two\nlines"}, "routes.list failed: odd: two lines"),
]


@pytest.mark.parametrize(("order", "line"), REFUSALS)
def test_what_google_refuses_is_one_line(vpc: GceVpc, order: dict[str, Any], line: str) -> None:
    vpc.fail({"action": "routes.list", **order})
    assert fault_of() == line


def test_half_an_answer_is_asked_for_again_and_named_where_it_stays(vpc: GceVpc) -> None:
    vpc.fail({"action": "routes.list", "cut": True, "times": 1})
    connect().close()
    vpc.fail({"action": "routes.list", "cut": True})
    assert fault_of() == f"{vpc.url}/'s answer to routes.list broke off: is a proxy in the way?"


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (
            {"status": 403, "code": "rateLimitExceeded"},
            "Google is asked too often in this project (rateLimitExceeded to routes.list)",
        ),
        (
            {"status": 429, "code": "RESOURCE_EXHAUSTED"},
            "Google is asked too often in this project (rateLimitExceeded to routes.list)",
        ),
        (
            {"status": 503, "code": "unavailable", "message": "sorry"},
            "Google's API is not well (unavailable to routes.list): sorry",
        ),
    ],
)
def test_what_passes_is_borne_and_named_where_it_lasts(vpc: GceVpc, order: dict[str, Any], line: str) -> None:
    vpc.fail({"action": "routes.list", **order, "times": rest.TRIES - 1})
    connect().close()
    vpc.fail({"action": "routes.list", **order})
    asked = len(vpc.asked())
    assert fault_of() == line
    assert vpc.asked()[asked:] == ["routes.list"] * rest.TRIES


def test_credentials_that_have_expired_are_renewed(vpc: GceVpc) -> None:
    with closing(connect()) as account:
        vpc.fail({"action": "routes.list", "status": 401, "code": "authError", "times": 1})
        asked = len(vpc.asked())
        account.tables()
        assert vpc.asked()[asked : asked + 2] == ["routes.list"] * 2


@pytest.mark.parametrize(
    ("code", "message", "line"),
    [
        (
            "QUOTA_EXCEEDED",
            "Quota 'STATIC_ROUTES_PER_NETWORK' exceeded. Limit: 200.0 globally.",
            f"{FULL} (Quota 'STATIC_ROUTES_PER_NETWORK' exceeded. Limit: 200.0 globally.)",
        ),
        ("PERMISSIONS_ERROR", "Required 'compute.x' permission for 'p'", f"no right to compute.x on p: {GIVE}"),
    ],
)
def test_an_operation_that_fails_says_why(vpc: GceVpc, code: str, message: str, line: str) -> None:
    with closing(connect()) as account:
        vpc.order("/test/failures", [{"code": code, "message": message}])
        with pytest.raises(CloudError) as caught:
            account.create(TABLE, AT)
    assert str(caught.value) == line
    assert vpc.routes() == {}


def test_an_operation_that_takes_too_long_is_named(vpc: GceVpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "OPERATION_S", 0.0)
    with closing(connect()) as account, pytest.raises(CloudError, match=r"routes\.insert is not done after 0 s \(oper"):
        account.create(TABLE, AT)
    assert wait_until(lambda: str(AT) in vpc.routes(), PATIENCE_S)  # or it would come after all have been cleared


def test_a_route_of_that_name_in_another_network_is_named(vpc: GceVpc, host: dict[str, Any]) -> None:
    vpc.lead(str(AT), target_of(host), network="second")
    with closing(connect()) as account, pytest.raises(CloudError) as caught:
        account.create(TABLE, AT)
    assert str(caught.value) == (
        "the project has a route of that name already, made at this moment or in another network. Names are a "
        "project's: two clusters in one project need different Networks "
        f"(The resource 'global/routes/{name_of(str(AT))}' already exists)"
    )


def test_no_line_of_a_log_has_a_token(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(1), closing(connect()) as account:
        account.tables()
    assert TOKEN not in caplog.text


# --- rights -------------------------------------------------------------------------------------------------------


def allowed() -> list[str]:
    """Return the rights that the role file gives."""
    rights: list[str] = yaml.safe_load(ROLE.read_text())["includedPermissions"]
    return rights


@pytest.mark.parametrize("lacking", [None, *allowed()])
def test_the_role_file_has_every_right_that_is_needed_and_none_else(vpc: GceVpc, lacking: str | None) -> None:
    vpc.lead(str(AT), f"{PROJECT}/{ZONE}/gone")
    with closing(connect()) as account:
        account.tables()  # only what was read is deleted
        vpc.order("/test/rights", [right for right in allowed() if right != lacking])
        refused = use_all(account)
    if lacking is None:
        assert refused == []
    else:
        assert refused
        assert {line.split(" on ")[0] for line in refused} == {f"no right to {lacking}"}


def use_all(account: Account) -> list[str]:
    """Do everything that is ever done, each whether or not what came before was let; return what was refused."""
    refused = []
    for call in (
        account.tables,
        account.permit,
        partial(account.addresses_of, [f"{PROJECT}/{ZONE}/gone"]),
        partial(account.create, TABLE, AT),
        partial(account.replace, TABLE, AT),
        partial(account.remove, TABLE, AT),
    ):
        try:
            call()
        except CloudError as error:
            if "no right to" in str(error):
                refused.append(str(error))
    return refused
