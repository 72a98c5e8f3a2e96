"""The options of aws-vpc, and that its secret is told to nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cli import config_put
from flannel_udp.cli.main import main
from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import ParsedConfig
from tests.support.backends import parse_config
from tests.support.memory_registry import MemoryRegistry

TABLE, OTHER = "rtb-0123456789abcdef0", "rtb-12345678"
KEYS = {"AccessKeyID": "AKIAEXAMPLE", "AccessKeySecret": "sesame-open"}


def text(**options: Any) -> str:
    return json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "aws-vpc", **options}})


def parse(**options: Any) -> ParsedConfig:
    return parse_config(text(**options))


def test_without_options_everything_is_found_by_the_instance_itself() -> None:
    assert parse().config.backend.options == {}


@pytest.mark.parametrize(("given", "read"), [(TABLE, [TABLE]), ([TABLE], [TABLE]), ([TABLE, OTHER], [TABLE, OTHER])])
def test_route_tables_are_one_or_a_list_as_flannel_has_them(given: Any, read: list[str]) -> None:
    assert parse(routetableid=given).config.backend.options == {"RouteTableID": read}


def test_region_and_access_key_can_be_given() -> None:
    options = {"Region": "eu-central-1", **KEYS}
    config = parse(**options).config
    assert config.backend.options == options
    assert parse_config(config.to_json()).config == config


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"RouteTableID": []}, 'Backend.RouteTableID is []: expected "rtb-..." or a list of such'),
        ({"RouteTableID": 7}, 'Backend.RouteTableID is 7: expected "rtb-..." or a list of such'),
        ({"RouteTableID": "main"}, 'Backend.RouteTableID is "main": expected "rtb-..." or a list of such'),
        ({"RouteTableID": [TABLE, None]}, f'RouteTableID is ["{TABLE}", null]: expected "rtb-..." or a list of such'),
        ({"RouteTableID": [OTHER, OTHER]}, f'RouteTableID is ["{OTHER}", "{OTHER}"]: expected each table once'),
        ({"Region": "Frankfurt"}, 'Backend.Region is "Frankfurt": expected a region such as "eu-central-1"'),
        ({"Region": 1}, "Backend.Region is 1: expected a string"),
        (
            {"AccessKeyID": "AKIA"},
            "Backend.AccessKeyID without Backend.AccessKeySecret: give both, or neither for the instance's role",
        ),
        (
            {"AccessKeySecret": "sesame-open"},
            "Backend.AccessKeySecret without Backend.AccessKeyID: give both, or neither for the instance's role",
        ),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**options)
    (line,) = caught.value.faults
    assert line.endswith(fault)


# --- the secret ---------------------------------------------------------------------------------------------------


def test_a_secret_is_in_no_message() -> None:
    twice = text(**KEYS).replace('"AccessKeySecret"', '"accesskeysecret": "sesame-1", "AccessKeySecret"')
    (warning,) = parse_config(twice).warnings
    assert warning == "Backend.AccessKeySecret is given more than once: the last one, (hidden), counts"
    with pytest.raises(ConfigError) as caught:
        parse(AccessKeyID="AKIA", AccessKeySecret=["sesame-open"])
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"Network": "10.1.0.0/16", "Backend": [KEYS]},
        {"Network": "10.1.0.0/16", "Backend": json.dumps({"accessKeySecret": "sesame"})},
        {"Network": KEYS},
        [{"Backend": {"AccessKeySecret": "sesame"}}],
    ],
)
def test_what_stands_in_the_wrong_place_and_holds_a_secret_is_not_shown(document: object) -> None:
    with pytest.raises(ConfigError, match=r"is \(hidden\): expected ") as caught:
        parse_config(json.dumps(document))
    assert "sesame" not in str(caught.value)


def test_a_secret_s_misspelt_key_is_named() -> None:
    (warning,) = parse_config(text(AccessKeySecrets="sesame")).warnings
    assert warning == 'unknown key "Backend.AccessKeySecrets" is ignored: did you mean Backend.AccessKeySecret?'


def test_a_check_of_the_configuration_prints_all_but_the_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net-conf.json"
    file.write_text(text(**KEYS))
    assert main(["config", "check", str(file)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["Backend"] == {"Type": "aws-vpc", "AccessKeyID": "AKIAEXAMPLE"}
    assert shown.err == "flannel-udp: warning: what is printed lacks AccessKeySecret: store the file itself\n"


OTHER_KEYS = {**KEYS, "AccessKeySecret": "sesame-2"}


@pytest.mark.parametrize(
    ("before", "after", "old", "new"),
    [
        ({}, KEYS, None, "(hidden)"),
        (KEYS, {}, "(hidden)", None),
        (KEYS, OTHER_KEYS, "(hidden)", "(another one, hidden)"),
    ],
)
def test_what_a_new_configuration_changes_is_told_without_the_secret(
    before: dict[str, str], after: dict[str, str], old: str | None, new: str | None
) -> None:
    registry = MemoryRegistry()
    asyncio.run(registry.write_config(text(**before).encode()))
    outcome = asyncio.run(config_put.put_config(registry, text(**after).encode(), parse_config))
    (change,) = [each for each in outcome.changes if each.key == "Backend.AccessKeySecret"]
    assert (change.old, change.new) == (old, new)
