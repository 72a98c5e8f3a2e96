"""The options of gce: flannel has none, two are our own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import ParsedConfig
from tests.support.backends import parse_config


def parse(**options: Any) -> ParsedConfig:
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "gce", **options}}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"Project": "my-host-project", "VpcNetwork": "default"},
        {"Project": "123456789012"},
        {"Project": "example.com:my-project"},
    ],
)
def test_options_are_read_and_written_back(options: dict[str, str]) -> None:
    config = parse(**options).config
    assert config.backend.options == options
    assert parse_config(config.to_json()).config == config


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"Project": "My Project"},
            'Project is "My Project": expected the id or number of a project, such as "my-host-',
        ),
        ({"Project": 12}, "Backend.Project is 12: expected a string"),
        (
            {"VpcNetwork": "projects/p/global/networks/n"},
            '"projects/p/global/networks/n": expected the name of a VPC network, such as "default"',
        ),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**options)
    (line,) = caught.value.faults
    assert fault in line
