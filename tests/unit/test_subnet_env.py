"""subnet.env: byte for byte flannel's, read back whatever a shell would accept, replaced whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv, SubnetEnvError
from flannel_udp.model import Subnet
from tests.support.patience import PATIENCE_S

V4 = SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(IPv4Network("10.1.15.0/24")), 1472, ip_masq=False)
DUAL = SubnetEnv(
    IPv4Network("10.1.0.0/16"),
    Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:2::/64")),
    1472,
    ip_masq=True,
    ipv6_network=IPv6Network("fd00:1::/48"),
)
V4_TEXT = """\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.15.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
"""
DUAL_TEXT = """\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.15.1/24
FLANNEL_IPV6_NETWORK=fd00:1::/48
FLANNEL_IPV6_SUBNET=fd00:1:2::1/64
FLANNEL_MTU=1472
FLANNEL_IPMASQ=true
"""
ONLY_V6 = SubnetEnv(None, Subnet(None, DUAL.subnet.v6), 1452, ip_masq=True, ipv6_network=DUAL.ipv6_network)
ONLY_V6_TEXT = """\
FLANNEL_IPV6_NETWORK=fd00:1::/48
FLANNEL_IPV6_SUBNET=fd00:1:2::1/64
FLANNEL_MTU=1452
FLANNEL_IPMASQ=true
"""
ALL_KEYS = (
    "FLANNEL_NETWORK",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
)


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("env", "text"), [(V4, V4_TEXT), (DUAL, DUAL_TEXT), (ONLY_V6, ONLY_V6_TEXT)], ids=["v4", "dual", "v6"]
)
def test_the_file_is_flannels_byte_for_byte_and_reads_back(tmp_path: Path, env: SubnetEnv, text: str) -> None:
    path = tmp_path / "subnet.env"
    subnet_env.write(path, env)
    assert path.read_bytes() == text.encode()
    assert subnet_env.read(path) == env


def test_no_file_is_none(tmp_path: Path) -> None:
    assert subnet_env.read(tmp_path / "subnet.env") is None
    assert subnet_env.read(tmp_path / "nowhere" / "subnet.env") is None


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, closed_umask: None) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    subnet_env.write(path, V4)
    assert (mode(path), mode(path.parent), mode(path.parent.parent)) == (0o644, 0o755, 0o755)


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    subnet_env.write(tmp_path / "private" / "subnet.env", V4)
    assert mode(tmp_path / "private") == 0o700


def test_an_old_file_and_a_killed_runs_leavings_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("x" * 10_000)
    path.chmod(0o600)
    (tmp_path / ".subnet.env.tmp").write_text("y" * 10_000)
    subnet_env.write(path, V4)
    assert path.read_text() == V4_TEXT
    assert mode(path) == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["subnet.env"]


def test_a_reader_never_sees_the_file_change_under_it(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    subnet_env.write(path, V4)
    with path.open() as reader:
        subnet_env.write(path, DUAL)
        assert reader.read() == V4_TEXT
    assert path.read_text() == DUAL_TEXT


def test_a_planted_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".subnet.env.tmp").symlink_to(victim)
    with pytest.raises(FlannelError, match="cannot write"):
        subnet_env.write(tmp_path / "subnet.env", V4)
    assert victim.read_text() == "untouched"


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").mkdir()
    with pytest.raises(FlannelError) as caught:
        subnet_env.write(tmp_path / "subnet.env", V4)
    assert str(caught.value) == f"cannot write {tmp_path}/subnet.env: Is a directory"
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["subnet.env"]


def test_a_directory_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlannelError, match=r"^cannot write .*/file/subnet.env: Not a directory$"):
        subnet_env.write(tmp_path / "file" / "subnet.env", V4)


def test_what_a_shell_would_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(
        b"# written by hand\r\n\r\n"
        b'export FLANNEL_NETWORK="10.1.0.0/16"\r\n'
        b"FLANNEL_SUBNET=10.1.99.1/24\n"
        b"  FLANNEL_SUBNET='10.1.15.1/24'   # the last one counts\n"
        b"FLANNEL_SOMETHING_NEW=yes\n"
        b"this line means nothing\n"
        b"FLANNEL_MTU=1472 # bytes\n"
        b"FLANNEL_IPMASQ=false"
    )
    assert subnet_env.read(path) == V4


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", ALL_KEYS),
        ("\0\xff garbage = =\n" * 50, ALL_KEYS),
        ("FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", ALL_KEYS[:4]),
        ("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_IPMASQ=true\n", ("FLANNEL_SUBNET", "FLANNEL_MTU")),
        (V4_TEXT.replace("1472", ""), ("FLANNEL_MTU",)),
        (V4_TEXT.replace("10.1.0.0/16", '"10.1.0.0/16'), ("FLANNEL_NETWORK",)),
        (V4_TEXT.replace("FLANNEL_MTU", "#FLANNEL_MTU"), ("FLANNEL_MTU",)),
        (V4_TEXT + "FLANNEL_IPV6_SUBNET=fd00::1/64\n", ("FLANNEL_IPV6_NETWORK",)),
        (V4_TEXT + "FLANNEL_IPV6_NETWORK=fd00::/48\n", ("FLANNEL_IPV6_SUBNET",)),
    ],
    ids=[
        "empty",
        "garbage",
        "no family",
        "two keys",
        "empty value",
        "open quote",
        "commented out",
        "lone v6 subnet",
        "lone v6 net",
    ],
)
def test_all_missing_keys_are_named(tmp_path: Path, text: str, missing: tuple[str, ...]) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SubnetEnvError) as caught:
        subnet_env.read(path)
    assert caught.value.missing == missing
    assert str(caught.value) == f"{path} lacks {', '.join(missing)}"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("10.1.0.0/16", "10.1.0.0", "FLANNEL_NETWORK is '10.1.0.0', not an IPv4 network such as 10.1.0.0/16"),
        ("10.1.15.1/24", "10.1.15.1/33", "FLANNEL_SUBNET is '10.1.15.1/33', not an IPv4 network"),
        ("1472", "big", "FLANNEL_MTU is 'big', not a number of bytes from 1 to 65535"),
        ("1472", "65536", "FLANNEL_MTU is '65536', not"),
        ("1472", "-1", "FLANNEL_MTU is '-1', not"),
        ("true", "yes", "FLANNEL_IPMASQ is 'yes', not true or false"),
        ("fd00:1::/48", "10.1.0.0/16", "FLANNEL_IPV6_NETWORK is '10.1.0.0/16', not an IPv6 network"),
        ("1472", "9" * 5000, "FLANNEL_MTU is '99999"),
    ],
)
def test_a_bad_value_is_named_with_file_and_key(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(DUAL_TEXT.replace(old, new))
    with pytest.raises(SubnetEnvError) as caught:
        subnet_env.read(path)
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert len(str(caught.value)) < 400
    assert caught.value.missing == ()


def test_an_unreadable_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SubnetEnvError, match=r"^cannot read .*: Is a directory$"):
        subnet_env.read(tmp_path)


@st.composite
def envs(draw: st.DrawFn) -> SubnetEnv:
    prefix_len = draw(st.integers(8, 28))
    network = IPv4Network((draw(st.integers(0, 2**32 - 1)) >> (32 - prefix_len) << (32 - prefix_len), prefix_len))
    subnet_len = draw(st.integers(prefix_len + 2, 30))
    offset = draw(st.integers(0, 2 ** (subnet_len - prefix_len) - 1)) << (32 - subnet_len)
    subnet = IPv4Network((int(network.network_address) + offset, subnet_len))
    v6_network = draw(st.sampled_from([None, IPv6Network("fd00::/48"), IPv6Network("2001:db8::/62")]))
    v6 = None if v6_network is None else next(v6_network.subnets(new_prefix=64))
    return SubnetEnv(network, Subnet(subnet, v6), draw(st.integers(1, 65_535)), draw(st.booleans()), v6_network)


@given(envs())
def test_what_is_written_is_what_is_read(env: SubnetEnv) -> None:
    assert subnet_env.parse(subnet_env.format_env(env), "test") == env


@given(st.text(max_size=300))
def test_any_text_is_understood_or_refused_by_name(text: str) -> None:
    try:
        subnet_env.parse(V4_TEXT + text, "test")
    except SubnetEnvError as error:
        assert "test" in str(error)
        assert "\n" not in str(error)


def test_importing_it_is_light() -> None:
    """The CNI plugin reads this file for every pod, so no third-party package and no event loop may come along."""
    code = "import sys, flannel_udp.files.subnet_env; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout
    heavy = {"asyncio", "pyroute2", "h11", "rich", "logging", "json", "tempfile", "socket"}
    assert not heavy & {module.split(".")[0] for module in loaded.split()}
