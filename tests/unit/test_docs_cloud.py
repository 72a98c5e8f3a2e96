"""docs/cloud.md: each provider's table of calls, its file of rights and the code say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_udp.agent import agent
from flannel_udp.backend.cloud import keeper
from flannel_udp.backend.cloud.aws.account import LIMITS as AWS_LIMITS
from flannel_udp.backend.cloud.gce.account import LIMITS as GCE_LIMITS
from flannel_udp.backend.cloud.gce.rest import OPERATION_S
from flannel_udp.backend.table import BACKENDS

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


def aws() -> Documented:
    text = (CLOUD / "aws" / "account.py").read_text()
    methods = re.findall(r"_ec2\.(\w+)\(", text) + re.findall(r'get_paginator\("(\w+)"\)', text)
    called = {"".join(word.capitalize() for word in name.split("_")) for name in methods} - {"Close", "GetPaginator"}
    assert called == set(re.findall(r'_asking\("([A-Z]\w+)"', text))
    statements: list[dict[str, Any]] = json.loads((EXAMPLES / "aws-policy.json").read_text())["Statement"]
    actions = [each["Action"] if isinstance(each["Action"], list) else [each["Action"]] for each in statements]
    return Documented("AWS", called, [action for each in actions for action in each])


def gce() -> Documented:
    text = "".join((CLOUD / "gce" / name).read_text() for name in ("account.py", "rest.py"))
    called = set(re.findall(r'"((?:routes|instances|globalOperations)\.\w+)"', text))
    role = yaml.safe_load((EXAMPLES / "gce-role.yaml").read_text())
    return Documented("Google Cloud", called, role["includedPermissions"])


PROVIDERS = {"aws-vpc": aws(), "gce": gce()}


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


def test_a_right_of_aws_s_is_named_after_its_call() -> None:
    assert {call: [f"ec2:{call}"] for call in rows("aws-vpc")} == rows("aws-vpc")


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_option_is_explained(kind: str) -> None:
    keys = BACKENDS[kind].option_keys
    assert [key for key in keys if not re.search(rf"^\| .*`{key}`", section(kind), re.MULTILINE)] == []


@pytest.mark.parametrize("kind", PROVIDERS)
def test_what_was_never_tried_on_the_real_thing_is_said_first(kind: str) -> None:
    assert "**Never tried on the real thing.**" in TEXT.split("## ")[0]
    assert section(kind).lstrip().startswith(f"**Never tried on the real {PROVIDERS[kind].name}.**")


def test_times_are_those_of_the_code() -> None:
    assert keeper.GRACE_S == 300
    assert "after five minutes" in TEXT
    assert sum(keeper.LOOK_S) / 2 == 60
    assert keeper.PERMIT_EVERY_S == 600
    assert all("every ten minutes" in section(kind) for kind in PROVIDERS)
    assert f"within {agent.END_TIMEOUT_S:g} s" in TEXT
    assert OPERATION_S == 60
    assert "asked until it is, for a minute at most" in section("gce")


def test_limits_are_those_of_the_code() -> None:
    assert AWS_LIMITS == (50, 500, 1000)
    assert "500 routes at most" in section("aws-vpc")
    assert "(50 before June 2025), never more than 1,000" in section("aws-vpc")
    assert GCE_LIMITS == (200, None)
    assert "200 static routes at most" in section("gce")
