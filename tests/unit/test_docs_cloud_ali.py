"""docs/cloud.md on ali-vpc: its table of calls, the policy file and the code say the same."""

from __future__ import annotations

import inspect
import json
import re
from itertools import chain
from pathlib import Path

from flannel_udp.backend.cloud import ali, keeper
from flannel_udp.backend.cloud.ali import account, credentials, identity
from flannel_udp.backend.cloud.options import OPTION_KEYS
from tests.support.ali_server import VERSION
from tests.support.ali_vpc import VARIABLES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cloud.md").read_text().partition("\n## ali-vpc\n")[2].partition("\n## ")[0]


def rows() -> dict[str, str]:
    """Return the table: call → right."""
    return dict(re.findall(r"^\| (\w+) \| `([\w:]+)` \|", TEXT, re.MULTILINE))


def test_each_call_that_the_code_makes_is_in_the_table_and_no_other_one() -> None:
    source = inspect.getsource(account)
    assert rows().keys() == set(re.findall(r'_asking\("(\w+)"', source))
    methods = {"".join(word.capitalize() for word in name.split("_")) for name in re.findall(r"_vpc\.(\w+)\(", source)}
    assert rows().keys() == methods


def test_each_right_is_in_the_policy_file_and_no_other_one() -> None:
    statements = json.loads((ROOT / "examples" / "cloud" / "ali-policy.json").read_text())["Statement"]
    assert sorted(chain.from_iterable(each["Action"] for each in statements)) == sorted(rows().values())
    assert {call: f"vpc:{call}" for call in rows()} == rows()


def test_every_option_and_variable_is_explained() -> None:
    assert [key for key in OPTION_KEYS if not re.search(rf"^\| .*`{key}`", TEXT, re.MULTILINE)] == []
    assert [name for name in (*VARIABLES, account.ENDPOINT_VARIABLE) if f"`{name}`" not in TEXT] == []
    assert (identity.URL.removeprefix("http://") in TEXT, str(ali.SERVICES) in TEXT) == (True, True)


def test_times_limits_and_the_mark_are_those_of_the_code() -> None:
    assert (keeper.GRACE_S, credentials.RENEW_BEFORE_S) == (300, 300)
    assert "five minutes before they end" in TEXT
    assert re.search(r"removed after five minutes", TEXT)
    assert account.LIMITS == (48, 200, None)
    assert "200 custom entries a table (48 in former times)" in TEXT
    assert f"for {account.SETTLE_S:g} s at most" in TEXT
    assert account.SETTLE_EVERY_S == 1
    assert f"the name `{account.MARK}`" in TEXT
    assert VERSION in TEXT


def test_what_was_never_tried_on_the_real_thing_is_said_first() -> None:
    assert TEXT.lstrip().startswith("**Never tried on the real Alibaba Cloud.**")
