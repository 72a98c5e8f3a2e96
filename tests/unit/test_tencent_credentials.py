"""With which keys tencent-vpc asks its API, what these have to allow, and that nobody is told of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.backend.cloud.tencent import credentials
from tests.support.tencent_host import VARIABLES, connect, fault_of, fixtures
from tests.support.tencent_vpc import (
    KEYS,
    ROLE,
    TencentVpc,
    tencent_metadata_on_loopback,
)

POLICY = Path(__file__).parents[2] / "examples" / "cloud" / "tencent-policy.json"
AT = IPv4Network("10.1.15.0/24")
vpc, host, metadata, here = fixtures()


def without_keys(patch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        patch.delenv(name, raising=False)


def test_no_credentials_are_named(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    assert fault_of() == (
        "no credentials for Tencent Cloud: give the instance a CAM role, see examples/cloud/tencent-policy.json; or "
        f"ACCESS_KEY_ID and ACCESS_KEY_SECRET (the metadata service at {metadata} answers "
        "/latest/meta-data/cam/security-credentials/ with status 404)"
    )


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"AccessKeyID": "AKIDroot", "AccessKeySecret": "of-root"}, {"ACCESS_KEY_ID": "no", "ACCESS_KEY_SECRET": "no"}),
        ({}, {"ACCESS_KEY_ID": "AKIDroot", "ACCESS_KEY_SECRET": "of-root"}),
        ({}, {"TENCENTCLOUD_SECRET_ID": "AKIDroot", "TENCENTCLOUD_SECRET_KEY": "of-root"}),
    ],
)
def test_credentials_may_be_the_configuration_s_or_the_environment_s(
    options: dict[str, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with closing(connect(**options)) as account:
        assert len(account.tables()) == 1


def test_half_an_access_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    monkeypatch.setenv("ACCESS_KEY_ID", "AKIDroot")
    assert fault_of() == (
        "ACCESS_KEY_ID and ACCESS_KEY_SECRET belong together: set both, or neither for the instance's role"
    )


@pytest.mark.parametrize(
    ("key_id", "secret", "code"),
    [("nobody", "of-root", "AuthFailure.SecretIdNotFound"), ("AKIDroot", "another", "AuthFailure.SignatureFailure")],
)
def test_a_wrong_access_key_is_named_and_not_told(key_id: str, secret: str, code: str) -> None:
    assert fault_of(AccessKeyID=key_id, AccessKeySecret=secret) == (
        f"Tencent Cloud does not take our credentials ({code}): correct the role, or the access key"
    )


def test_credentials_may_be_the_instance_s_role_and_are_renewed_before_they_end(
    vpc: TencentVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    ending = {**ROLE, "ExpiredTime": int(time.time()) + 200}  # less than is left for asking anew
    with tencent_metadata_on_loopback({**host, "role": ending}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        with closing(connect()) as account:
            account.tables()
    with pytest.raises(CloudError, match=f"no metadata service at {url}"):
        account.tables()


def test_another_role_s_keys_are_taken_within_minutes(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    monkeypatch.setattr(credentials, "RENEW_S", -1.0)
    with tencent_metadata_on_loopback({**host, "role": ROLE}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        account = connect()
    with closing(account), pytest.raises(CloudError, match=f"no metadata service at {url}"):
        account.tables()


def test_keys_of_a_role_that_are_valid_for_long_are_not_asked_for_at_each_call(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    with tencent_metadata_on_loopback({**host, "role": ROLE}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        account = connect()
    with closing(account):
        assert len(account.tables()) == 1


def test_a_role_that_has_no_keys_is_named(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    with tencent_metadata_on_loopback({**host, "role": {"Code": "Denied"}}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        assert fault_of().endswith(" (the metadata service has no keys of the role hosts: Denied)")


def test_no_line_of_a_log_has_a_token(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_keys(monkeypatch)
    with tencent_metadata_on_loopback({**host, "role": ROLE}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        with caplog.at_level(1), closing(connect()) as account:
            account.tables()
    assert "token-of-the-role" not in caplog.text


# --- rights -------------------------------------------------------------------------------------------------------


def allowed() -> list[str]:
    """Return the actions that the policy file allows."""
    return [action for statement in json.loads(POLICY.read_text())["statement"] for action in statement["action"]]


@pytest.mark.parametrize("lacking", [None, *allowed()])
def test_the_policy_file_has_every_right_that_is_needed_and_none_else(vpc: TencentVpc, lacking: str | None) -> None:
    actions = [action.removeprefix("vpc:") for action in allowed() if action != lacking]
    vpc.order("/test/keys", {**KEYS, "AKIDroot": {"secret": "of-root", "allowed": actions}})
    if lacking is None:
        assert use_all(vpc.main) == []
    else:
        assert any(f"no right to {lacking} on " in line for line in use_all(vpc.main))


def use_all(table: str) -> list[str]:
    """Do everything that is ever done, each whether or not what came before was let; return what was refused."""
    refused: list[str] = []

    def do(call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except CloudError as error:
            refused.append(str(error))

    try:
        account = connect()
    except CloudError as error:
        return [str(error)]
    with closing(account):
        do(account.create, table, AT)
        do(account.tables)
        do(account.replace, table, AT)
        do(account.remove, table, AT)
    return refused
