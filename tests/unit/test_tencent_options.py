"""The options of tencent-vpc: what its names of tables and regions look like. The rest is as with aws-vpc."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config

TABLE = "rtb-n0yejvje"


def parse(**options: Any) -> NetworkConfig:
    backend = {"Type": "tencent-vpc", **options}
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": backend})).config


@pytest.mark.parametrize("region", ["ap-guangzhou", "na-siliconvalley", "ap-shenzhen-fsi", "ap-beijing-2"])
def test_tables_and_regions_are_named_as_tencent_names_them(region: str) -> None:
    options = {"RouteTableID": [TABLE], "Region": region, "AccessKeyID": "AKIDz8", "AccessKeySecret": "sesame"}
    assert parse(**options).backend.options == options


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"RouteTableID": "vtb-1"}, 'Backend.RouteTableID is "vtb-1": expected "rtb-..." or a list of such'),
        ({"Region": "Guangzhou"}, 'Backend.Region is "Guangzhou": expected a region such as "ap-guangzhou"'),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**options)
    assert caught.value.faults == [fault]
