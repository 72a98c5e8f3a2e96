"""docs/cloud.md on tencent-vpc: its table of calls, the policy file and the code say the same."""

from __future__ import annotations

import inspect
import json
import re
from itertools import chain
from pathlib import Path

from flannel_udp.backend.cloud import keeper
from flannel_udp.backend.cloud.options import OPTION_KEYS
from flannel_udp.backend.cloud.tencent import account, credentials, identity
from tests.support.tencent_host import VARIABLES
from tests.support.tencent_server import LIMIT, SAME_KIND_MAX, VERSION

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cloud.md").read_text().partition("\n## tencent-vpc\n")[2].partition("\n## ")[0]


def rows() -> dict[str, str]:
    """Return the table: call → right."""
    return dict(re.findall(r"^\| (\w+) \| `([\w:]+)` \|", TEXT, re.MULTILINE))


def test_each_call_that_the_code_makes_is_in_the_table_and_no_other_one() -> None:
    assert rows().keys() == set(re.findall(r'_ask\("(\w+)"', inspect.getsource(account)))


def test_each_right_is_in_the_policy_file_and_no_other_one() -> None:
    statements = json.loads((ROOT / "examples" / "cloud" / "tencent-policy.json").read_text())["statement"]
    assert sorted(chain.from_iterable(each["action"] for each in statements)) == sorted(rows().values())
    assert {call: f"vpc:{call}" for call in rows()} == rows()


def test_every_option_and_variable_is_explained() -> None:
    assert [key for key in OPTION_KEYS if not re.search(rf"^\| .*`{key}`", TEXT, re.MULTILINE)] == []
    variables = (*VARIABLES, "FLANNEL_UDP_TENCENT_ENDPOINT", "FLANNEL_UDP_TENCENT_METADATA")
    assert [name for name in variables if f"`{name}" not in TEXT] == []
    assert (account.API in TEXT, identity.URL.removeprefix("http://") in TEXT) == (True, True)


def test_times_limits_and_the_mark_are_those_of_the_code() -> None:
    assert (keeper.GRACE_S, credentials.RENEW_S) == (300, 300)
    assert "removed after five minutes" in TEXT.replace("\n  ", " ").replace("it\n", "it ")
    assert "asked for anew every five minutes" in TEXT
    assert account.LIMITS == (LIMIT, None)
    assert f"the limit of {LIMIT}" in TEXT
    assert f"the description `{account.MARK}`" in TEXT
    assert (SAME_KIND_MAX, "up to eight" in TEXT, VERSION in TEXT) == (8, True, True)


def test_what_was_never_tried_on_the_real_thing_is_said_first() -> None:
    assert TEXT.lstrip().startswith("**Never tried on the real Tencent Cloud.**")
