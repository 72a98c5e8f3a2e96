"""docs/cloud.md: each provider's table of calls, its file of rights and the code say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import yaml

from flannel_udp.agent import agent
from flannel_udp.backend.cloud import ali as ali_vpc
from flannel_udp.backend.cloud import keeper
from flannel_udp.backend.cloud.ali import account as ali_account
from flannel_udp.backend.cloud.ali import credentials as ali_credentials
from flannel_udp.backend.cloud.ali import identity as ali_identity
from flannel_udp.backend.cloud.aws.account import LIMITS as AWS_LIMITS
from flannel_udp.backend.cloud.gce.account import LIMITS as GCE_LIMITS
from flannel_udp.backend.cloud.gce.rest import OPERATION_S
from flannel_udp.backend.cloud.tencent import account as tencent_account
from flannel_udp.backend.cloud.tencent import credentials as tencent_credentials
from flannel_udp.backend.cloud.tencent import identity as tencent_identity
from flannel_udp.backend.table import BACKENDS
from tests.support import ali_server, tencent_host, tencent_server
from tests.support import ali_vpc as ali_host

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cloud.md").read_text()
CLOUD = ROOT / "flannel_udp" / "backend" / "cloud"
EXAMPLES = ROOT / "examples" / "cloud"


@dataclass(frozen=True)
class Documented:
    """What a provider's section has to agree with."""

    name: str
    called: Collection[str]
    """The calls of the API that the code makes, in the API's own spelling."""
    rights: Collection[str]
    """Those that the example gives."""
    prefix: str | None = None
    """Of the rights, where each is named after its call."""


def granted(file: str) -> list[str]:
    """Return the rights that a policy gives: AWS, Alibaba and Tencent write them almost alike."""
    policy = {name.lower(): value for name, value in json.loads((EXAMPLES / file).read_text()).items()}
    statements = [{name.lower(): value for name, value in each.items()} for each in policy["statement"]]
    actions = [each["action"] if isinstance(each["action"], list) else [each["action"]] for each in statements]
    return list(chain.from_iterable(actions))


def asked(text: str, asking: str) -> set[str]:
    """Return the calls that the code says it makes, to whoever explains what goes wrong with them."""
    return set(re.findall(rf'{asking}\("([A-Z]\w+)"', text))


def in_camel_case(methods: Iterable[str]) -> set[str]:
    return {"".join(word.capitalize() for word in name.split("_")) for name in methods}


def aws() -> Documented:
    text = (CLOUD / "aws" / "account.py").read_text()
    methods = re.findall(r"_ec2\.(\w+)\(", text) + re.findall(r'get_paginator\("(\w+)"\)', text)
    called = in_camel_case(methods) - {"Close", "GetPaginator"}
    assert called == asked(text, "_asking")
    return Documented("AWS", called, granted("aws-policy.json"), "ec2")


def ali() -> Documented:
    text = (CLOUD / "ali" / "account.py").read_text()
    called = in_camel_case(re.findall(r"_vpc\.(\w+)\(", text))
    assert called == asked(text, "_asking")
    return Documented("Alibaba Cloud", called, granted("ali-policy.json"), "vpc")


def tencent() -> Documented:
    text = (CLOUD / "tencent" / "account.py").read_text()
    return Documented("Tencent Cloud", asked(text, "_ask"), granted("tencent-policy.json"), "vpc")


def gce() -> Documented:
    text = "".join((CLOUD / "gce" / name).read_text() for name in ("account.py", "rest.py"))
    called = set(re.findall(r'"((?:routes|instances|globalOperations)\.\w+)"', text))
    role = yaml.safe_load((EXAMPLES / "gce-role.yaml").read_text())
    return Documented("Google Cloud", called, role["includedPermissions"])


PROVIDERS = {"aws-vpc": aws(), "ali-vpc": ali(), "gce": gce(), "tencent-vpc": tencent()}


def section(kind: str) -> str:
    """Return what the page has on one provider."""
    return TEXT.split(f"\n## {kind}\n")[1].split("\n## ")[0]


def rows(kind: str) -> dict[str, list[str]]:
    """Return a provider's table: call → rights."""
    found = re.findall(r"^\| ([\w.]+) \| ((?:`[\w:.]+`(?:, )?)+) \|", section(kind), re.MULTILINE)
    return {call: re.findall(r"`([^`]+)`", rights) for call, rights in found}


@pytest.mark.parametrize("kind", PROVIDERS)
def test_each_call_that_the_code_makes_is_in_the_table_and_no_other_one(kind: str) -> None:
    assert rows(kind).keys() == set(PROVIDERS[kind].called)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_each_right_is_in_the_example_and_no_other_one(kind: str) -> None:
    assert sorted(right for rights in rows(kind).values() for right in rights) == sorted(PROVIDERS[kind].rights)


@pytest.mark.parametrize(("kind", "prefix"), [(kind, each.prefix) for kind, each in PROVIDERS.items() if each.prefix])
def test_a_right_is_named_after_its_call(kind: str, prefix: str) -> None:
    assert {call: [f"{prefix}:{call}"] for call in rows(kind)} == rows(kind)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_option_is_explained(kind: str) -> None:
    keys = BACKENDS[kind].option_keys
    assert [key for key in keys if not re.search(rf"^\| .*`{key}`", section(kind), re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ali-vpc", (*ali_host.VARIABLES, ali_account.ENDPOINT_VARIABLE)),
        ("tencent-vpc", (*tencent_host.VARIABLES, "FLANNEL_UDP_TENCENT_ENDPOINT", "FLANNEL_UDP_TENCENT_METADATA")),
    ],
)
def test_every_variable_is_explained(kind: str, names: Collection[str]) -> None:
    assert [name for name in names if f"`{name}" not in section(kind)] == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ali-vpc", (ali_identity.URL.removeprefix("http://"), str(ali_vpc.SERVICES), ali_server.VERSION)),
        ("ali-vpc", (f"the name `{ali_account.MARK}`",)),
        ("tencent-vpc", (tencent_account.API, tencent_identity.URL.removeprefix("http://"), tencent_server.VERSION)),
        ("tencent-vpc", (f"the description `{tencent_account.MARK}`",)),
    ],
)
def test_addresses_versions_and_the_mark_are_those_of_the_code(kind: str, said: Collection[str]) -> None:
    assert [text for text in said if text not in section(kind)] == []


@pytest.mark.parametrize("kind", PROVIDERS)
def test_what_was_never_tried_on_the_real_thing_is_said_first(kind: str) -> None:
    assert "**Never tried on the real thing.**" in TEXT.split("## ")[0]
    assert section(kind).lstrip().startswith(f"**Never tried on the real {PROVIDERS[kind].name}.**")


def test_times_are_those_of_the_code() -> None:
    assert keeper.GRACE_S == 300
    assert "after five minutes" in TEXT
    assert all("removed after five minutes" in " ".join(section(kind).split()) for kind in ("ali-vpc", "tencent-vpc"))
    assert sum(keeper.LOOK_S) / 2 == 60
    assert keeper.PERMIT_EVERY_S == 600
    assert all("every ten minutes" in section(kind) for kind in ("aws-vpc", "gce"))
    assert f"within {agent.END_TIMEOUT_S:g} s" in TEXT
    assert OPERATION_S == 60
    assert "asked until it is, for a minute at most" in section("gce")
    assert ali_account.SETTLE_EVERY_S == 1
    assert f"is looked at each second until it stands, for {ali_account.SETTLE_S:g} s at most" in section("ali-vpc")
    assert (ali_credentials.RENEW_BEFORE_S, tencent_credentials.RENEW_S) == (300, 300)
    assert "five minutes before they end" in section("ali-vpc")
    assert "asked for anew every five minutes" in section("tencent-vpc")


def test_limits_are_those_of_the_code() -> None:
    assert AWS_LIMITS == (50, 500, 1000)
    assert "500 routes at most" in section("aws-vpc")
    assert "(50 before June 2025), never more than 1,000" in section("aws-vpc")
    assert GCE_LIMITS == (200, None)
    assert "200 static routes at most" in section("gce")
    assert ali_account.LIMITS == (48, 200, None)
    assert "200 custom entries a table (48 in former times)" in section("ali-vpc")
    assert tencent_account.LIMITS == (tencent_server.LIMIT, None)
    assert f"the limit of {tencent_server.LIMIT}" in section("tencent-vpc")
    assert tencent_server.SAME_KIND_MAX == 8
    assert "up to eight" in section("tencent-vpc")
