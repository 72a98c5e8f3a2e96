"""docs/cloud.md: its table of calls, the policy file and the code say the same; moto's stand-in proves the policy."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

from flannel_udp.agent import agent
from flannel_udp.backend.cloud import keeper
from flannel_udp.backend.cloud.aws.account import LIMITS
from flannel_udp.backend.cloud.options import OPTION_KEYS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cloud.md").read_text().partition("\n## ali-vpc\n")[0]
ACCOUNT = (ROOT / "flannel_udp" / "backend" / "cloud" / "aws" / "account.py").read_text()


def rows() -> dict[str, str]:
    """Return the table: call → right."""
    return dict(re.findall(r"^\| (\w+) \| `([\w:]+)` \|", TEXT, re.MULTILINE))


def called() -> set[str]:
    """Return the calls of the API that the code makes, in the API's own spelling."""
    methods = re.findall(r"_ec2\.(\w+)\(", ACCOUNT) + re.findall(r'get_paginator\("(\w+)"\)', ACCOUNT)
    return {"".join(word.capitalize() for word in name.split("_")) for name in methods} - {"Close", "GetPaginator"}


def test_each_call_that_the_code_makes_is_in_the_table_and_no_other_one() -> None:
    assert rows().keys() == called()
    assert called() == set(re.findall(r'_asking\("([A-Z]\w+)"', ACCOUNT))


def test_each_right_is_in_the_policy_file_and_no_other_one() -> None:
    statements = json.loads((ROOT / "examples" / "cloud" / "aws-policy.json").read_text())["Statement"]
    allowed = [each["Action"] if isinstance(each["Action"], list) else [each["Action"]] for each in statements]
    assert sorted(chain.from_iterable(allowed)) == sorted(rows().values())
    assert {call: f"ec2:{call}" for call in rows()} == rows()


def test_every_option_is_explained() -> None:
    assert [key for key in OPTION_KEYS if not re.search(rf"^\| .*`{key}`", TEXT, re.MULTILINE)] == []


def test_times_and_limits_are_those_of_the_code() -> None:
    assert keeper.GRACE_S == 300
    assert "after five minutes" in TEXT
    assert sum(keeper.LOOK_S) / 2 == 60
    assert keeper.PERMIT_EVERY_S == 600
    assert "every ten minutes" in TEXT
    assert f"within {agent.END_TIMEOUT_S:g} s" in TEXT
    assert LIMITS == (50, 500, 1000)
    assert "500 routes at most" in TEXT
    assert "(50 before June 2025), never more than 1,000" in TEXT


def test_what_was_never_tried_on_the_real_thing_is_said_first() -> None:
    assert "**Never tried on the real AWS.**" in TEXT.split("## ")[0]
