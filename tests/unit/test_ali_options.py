"""The options of ali-vpc: what differs from aws-vpc's, whose reading they share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import ParsedConfig
from tests.support.backends import parse_config

KEYS = {"AccessKeyID": "LTAIexample", "AccessKeySecret": "sesame-open"}


def parse(**options: Any) -> ParsedConfig:
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "ali-vpc", **options}}))


@pytest.mark.parametrize("region", ["cn-hangzhou", "ap-southeast-1", "cn-north-2-gov-1", "cn-shanghai-finance-1"])
def test_tables_are_one_or_a_list_and_regions_are_alibaba_s(region: str) -> None:
    options = parse(RouteTableID="vtb-bp145q7glnuzd", Region=region, **KEYS).config.backend.options
    assert options == {"RouteTableID": ["vtb-bp145q7glnuzd"], "Region": region, **KEYS}
    tables = ["vtb-bp1a", "vtb-bp1b"]
    assert parse(RouteTableID=tables).config.backend.options == {"RouteTableID": tables}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"RouteTableID": "rtb-12345678"}, 'RouteTableID is "rtb-12345678": expected "vtb-..." or a list of such'),
        ({"Region": "Hangzhou"}, 'Backend.Region is "Hangzhou": expected a region such as "cn-hangzhou"'),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**options)
    (line,) = caught.value.faults
    assert line.endswith(fault)
