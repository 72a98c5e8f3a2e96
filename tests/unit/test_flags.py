"""The flags of the agent: names, defaults, spellings, environment, precedence, refusals. Nothing is started here."""

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cli.flags import AGENT_FLAGS, IGNORED_FLAGS, Flag
from flannel_udp.cli.main import agent_options
from flannel_udp.cli.parsers import GO_BOOLS
from flannel_udp.errors import UsageError
from flannel_udp.options import (
    NO_OFFLOAD,
    DataplaneOptions,
    EtcdOptions,
    FirewallOptions,
    InterfaceOptions,
    KubeOptions,
    Offload,
    Options,
)

FLAGS = {flag.name: flag for flag in AGENT_FLAGS}

# flanneld's flags and its defaults.
FLANNELD = {
    "etcd-endpoints": "http://127.0.0.1:4001,http://127.0.0.1:2379",
    "etcd-prefix": "/coreos.com/network",
    "etcd-keyfile": "",
    "etcd-certfile": "",
    "etcd-cafile": "",
    "etcd-username": "",
    "etcd-password": "",
    "iface": "",
    "iface-regex": "",
    "iface-can-reach": "",
    "public-ip": "",
    "public-ipv6": "",
    "subnet-file": "/run/flannel/subnet.env",
    "subnet-lease-renew-margin": "60",
    "ip-masq": "",
    "ip-masq-fully-random-disable": "",
    "iptables-resync": "5",
    "iptables-forward-rules": "true",
    "ip-blackhole-route": "",
    "healthz-ip": "0.0.0.0",
    "healthz-port": "0",
    "kube-subnet-mgr": "",
    "kube-api-url": "",
    "kubeconfig-file": "",
    "kube-annotation-prefix": "flannel.alpha.coreos.com",
    "net-config-path": "/etc/kube-flannel/net-conf.json",
    "set-node-network-unavailable": "true",
    "v": "0",
}
OURS = {
    "registry": "etcd",
    "etcd-password-file": "",
    "release-on-exit": "",
    "takeover": "",
    "after-takeover": "end",
    "clean-on-exit": "",
    "on-lease-loss": "reacquire",
    "datapath": "auto",
    "source-check": "strict",
    "offload": "auto",
    "workers": "1",
    "busy-poll-us": "0",
    "source-ports": "0",
    "tx-queue-len": "5000",
    "control-socket": "/run/flannel/flannel-udp.sock",
    "state-dir": "/var/lib/flannel-udp",
    "log-format": "text",
    "metrics-peers": "0",
}

# flag, its text, the attribute of Options it sets, the value there
VALUES: list[tuple[str, str, str, Any]] = [
    ("registry", "file:/srv/registry.json", "registry", "file:/srv/registry.json"),
    ("registry", "etcd", "registry", "etcd"),
    ("etcd-endpoints", "https://etcd.example:2379", "etcd.endpoints", ("https://etcd.example:2379",)),
    (
        "etcd-endpoints",
        "http://a:1, http://[2001:db8::1]:2",
        "etcd.endpoints",
        ("http://a:1", "http://[2001:db8::1]:2"),
    ),
    ("etcd-endpoints", "http://192.0.2.1/", "etcd.endpoints", ("http://192.0.2.1/",)),
    ("etcd-endpoints", "192.0.2.1:2379", "etcd.endpoints", ("192.0.2.1:2379",)),
    ("etcd-prefix", "/vxlan/network", "etcd.prefix", "/vxlan/network"),
    ("etcd-keyfile", "/etc/ssl/key.pem", "etcd.keyfile", Path("/etc/ssl/key.pem")),
    ("etcd-keyfile", "", "etcd.keyfile", None),
    ("etcd-certfile", "cert.pem", "etcd.certfile", Path("cert.pem")),
    ("etcd-cafile", "ca.pem", "etcd.cafile", Path("ca.pem")),
    ("etcd-username", "root", "etcd.username", "root"),
    ("etcd-password", "-starts=with a dash", "etcd.password", "-starts=with a dash"),
    ("iface", "eth0", "interface.iface", ("eth0",)),
    ("iface", "192.0.2.1", "interface.iface", ("192.0.2.1",)),
    ("iface", "", "interface.iface", ()),
    ("iface-regex", r"^10\.(1|2){1,2}\.", "interface.iface_regex", (r"^10\.(1|2){1,2}\.",)),
    ("iface-can-reach", "192.0.2.9", "interface.iface_can_reach", "192.0.2.9"),
    ("iface-can-reach", "", "interface.iface_can_reach", ""),
    ("public-ip", "203.0.113.7", "interface.public_ip", IPv4Address("203.0.113.7")),
    ("public-ip", "240.0.0.7", "interface.public_ip", IPv4Address("240.0.0.7")),
    ("public-ip", "", "interface.public_ip", None),
    ("public-ipv6", "2001:db8::7", "interface.public_ipv6", IPv6Address("2001:db8::7")),
    ("public-ipv6", "", "interface.public_ipv6", None),
    ("iface-can-reach", "2001:db8::9", "interface.iface_can_reach", "2001:db8::9"),
    ("subnet-file", "env", "subnet_file", Path("env")),
    ("state-dir", "lib", "state_dir", Path("lib")),
    ("subnet-lease-renew-margin", "1", "subnet_lease_renew_margin", 1),
    ("subnet-lease-renew-margin", "1439", "subnet_lease_renew_margin", 1439),
    ("on-lease-loss", "exit", "on_lease_loss", "exit"),
    ("control-socket", "/tmp/a.sock", "control_socket", Path("/tmp/a.sock")),  # noqa: S108 - only a value
    ("healthz-ip", "127.0.0.1", "healthz_ip", "127.0.0.1"),
    ("healthz-ip", "::1", "healthz_ip", "::1"),
    ("healthz-port", "65535", "healthz_port", 65535),
    ("after-takeover", "wait", "after_takeover", "wait"),
    ("metrics-peers", "100", "metrics_peers", 100),
    ("v", "10", "verbosity", 10),
    ("log-format", "json", "log_format", "json"),
    ("datapath", "userspace", "dataplane.datapath", "userspace"),
    ("source-check", "loose", "dataplane.source_check", "loose"),
    ("source-check", "off", "dataplane.source_check", "off"),
    ("workers", "2", "dataplane.workers", 2),
    ("workers", "auto", "dataplane.workers", 0),
    ("busy-poll-us", "50", "dataplane.busy_poll_us", 50),
    ("source-ports", "16", "dataplane.source_ports", 16),
    ("tx-queue-len", "10", "dataplane.tx_queue_packets", 10),
    ("ip-masq", "true", "firewall.ip_masq", True),
    ("ip-masq-fully-random-disable", "true", "firewall.ip_masq_fully_random_disable", True),
    ("iptables-forward-rules", "false", "firewall.iptables_forward_rules", False),
    ("iptables-resync", "30", "firewall.iptables_resync", 30),
    ("ip-blackhole-route", "true", "firewall.ip_blackhole_route", True),
    ("clean-on-exit", "true", "firewall.clean_on_exit", True),
    ("offload", "auto", "dataplane.offload", Offload()),
    ("offload", "off", "dataplane.offload", NO_OFFLOAD),
    ("offload", "tso,udp-gro", "dataplane.offload", replace(NO_OFFLOAD, tso=True, udp_gro=True)),
    ("kube-subnet-mgr", "true", "kube.subnet_mgr", True),
    ("kube-api-url", "https://api.example:6443/clusters/a", "kube.api_url", "https://api.example:6443/clusters/a"),
    ("kube-api-url", "http://[2001:db8::1]:8080", "kube.api_url", "http://[2001:db8::1]:8080"),
    ("kube-api-url", "", "kube.api_url", ""),
    ("kubeconfig-file", "/etc/kube/config", "kube.kubeconfig_file", Path("/etc/kube/config")),
    ("kubeconfig-file", "", "kube.kubeconfig_file", None),
    ("kube-annotation-prefix", "example.org", "kube.annotation_prefix", "example.org"),
    ("kube-annotation-prefix", "example.org/", "kube.annotation_prefix", "example.org/"),
    ("kube-annotation-prefix", "a-1.example.org/x_y-z", "kube.annotation_prefix", "a-1.example.org/x_y-z"),
    ("net-config-path", "/etc/net-conf.json", "kube.net_config_path", Path("/etc/net-conf.json")),
    ("set-node-network-unavailable", "false", "kube.set_node_network_unavailable", False),
]
FAULTY = [
    *[
        ("kube-api-url", text, f"{text!r} is not a URL such as https://192.0.2.1:6443")
        for text in ("192.0.2.1:6443", "ftp://api", "https://", "https://api:x", "https://a b", "https://[::1")
    ],
    ("kube-api-url", "https://root:geheim@api", "the URL holds no user and password: they belong in a kubeconfig"),
    *[
        ("kube-annotation-prefix", text, f"{text!r} is not a lower-case domain name")
        for text in ("", "example", "Example.org", "example.org/a/b", "example.org/A", "/x", "example..org", "-a.org")
    ],
    ("net-config-path", "", "the path is empty"),
    ("registry", "consul", "'consul' is neither etcd nor file:PATH"),
    ("registry", "file:", "'file:' is neither etcd nor file:PATH"),
    ("registry", "etcd:x", "'etcd:x' is neither etcd nor file:PATH"),
    ("iface-regex", "eth[", "'eth[' is not a regular expression: "),
    ("iface-regex", "a{99999999999}", "'a{99999999999}' is not a regular expression: "),
    ("iface-can-reach", "gateway", "'gateway' is not an IP address"),
    ("public-ipv6", "192.0.2.1", "'192.0.2.1' is not an IPv6 address such as 2001:db8::1"),
    ("public-ipv6", "::1", "::1 is no address of one host"),
    ("public-ipv6", "ff02::1", "ff02::1 is no address of one host"),
    ("public-ipv6", "::ffff:192.0.2.1", f"{IPv6Address('::ffff:192.0.2.1')} is no address of one host"),
    ("public-ipv6", "fe80::1", "fe80::1 is link-local: another host may have the same (RFC 4291)"),
    ("public-ipv6", "fe80::1%eth0", "'fe80::1%eth0' names an interface of this host"),
    ("public-ip", "2001:db8::1", "'2001:db8::1' is not an IPv4 address such as 192.0.2.1"),
    ("public-ip", "127.0.0.1", "127.0.0.1 is no address of one host"),
    ("public-ip", "0.0.0.0", "0.0.0.0 is no address of one host"),
    ("public-ip", "224.0.0.1", "224.0.0.1 is no address of one host"),
    ("public-ip", "255.255.255.255", "255.255.255.255 is no address of one host"),
    (
        "public-ip",
        "169.254.1.1",
        "169.254.1.1 is link-local: another host may have the same (RFC 3927)",
    ),
    ("public-ip", "192.0.2.1/24", "'192.0.2.1/24' is not an IPv4 address such as 192.0.2.1"),
    ("subnet-file", "", "the path is empty"),
    ("state-dir", "", "the path is empty"),
    ("control-socket", "", "the path is empty"),
    ("subnet-lease-renew-margin", "0", "'0' is not a whole number from 1 to 1439"),
    ("subnet-lease-renew-margin", "1440", "'1440' is not a whole number from 1 to 1439"),
    ("subnet-lease-renew-margin", "60m", "'60m' is not a whole number from 1 to 1439"),
    ("metrics-peers", "101", "'101' is not a whole number from 0 to 100"),
    ("healthz-port", "65536", "'65536' is not a whole number from 0 to 65535"),
    ("healthz-port", "-1", "'-1' is not a whole number from 0 to 65535"),
    ("healthz-port", "9" * 5000, "is not a whole number from 0 to 65535"),
    ("healthz-port", "٨٠", "is not a whole number from 0 to 65535"),
    ("healthz-port", "", "'' is not a whole number from 0 to 65535"),
    ("healthz-ip", "localhost", "'localhost' is not an IP address"),
    ("healthz-ip", "fe80::1%eth0", "'fe80::1%eth0' names an interface: give an address without a zone, or ::"),
    ("v", "info", "'info' is not a whole number of at least 0"),
    ("iptables-resync", "0", "'0' is not a whole number of at least 1"),
    ("on-lease-loss", "restart", "'restart' is not one of reacquire, exit"),
    ("offload", "tso,warp", "'warp' is not auto, off or one of tso, uso, "),
    ("source-check", "", "'' is not one of strict, loose, off"),
    ("release-on-exit", "yes", "'yes' is neither true nor false"),
    ("ip-masq", "tRUE", "'tRUE' is neither true nor false"),
    ("set-node-network-unavailable", "", "'' is neither true nor false"),
    *(
        ("etcd-endpoints", text, "is not a URL such as http://192.0.2.1:2379 (several are joined by commas)")
        for text in (
            "",
            "http://",
            "http://:2379",
            "http://a:",
            "http://a:0",
            "http://a:65536",
            "http://a:b",
            "http://a b:1",
            "http://[::1:2379",
            "ftp://a:1",
            "unix:///run/etcd.sock",
            "http://a:1,",
            "http://a:1/v3",
            "http://a:1?x=1",
            "http://a:1#x",
        )
    ),
]


def spellings(flag: Flag, text: str) -> list[list[str]]:
    joined = [[f"--{flag.name}={text}"], [f"-{flag.name}={text}"]]
    return joined if flag.switch else [*joined, [f"--{flag.name}", text], [f"-{flag.name}", text]]


def read(*words: str, **environ: str) -> Options:
    return agent_options(words, environ)


def usage_error(*words: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(*words, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_flags_are_exactly_flannelds_ours_and_the_ignored_ones() -> None:
    assert set(FLAGS) == {*FLANNELD, *OURS, *(flag.name for flag in IGNORED_FLAGS)}
    assert len(FLAGS) == len(AGENT_FLAGS)


@pytest.mark.parametrize(("name", "default"), (FLANNELD | OURS).items())
def test_help_shows_the_default(name: str, default: str) -> None:
    assert FLAGS[name].default_text == default


def test_nothing_given_means_the_defaults() -> None:
    assert read() == Options()


def test_every_field_of_the_options_is_set_by_one_flag() -> None:
    fields = [flag.field for flag in AGENT_FLAGS if flag.field]
    expected = {
        name for name in Options.__slots__ if name not in ("etcd", "kube", "interface", "dataplane", "firewall")
    }
    expected |= {f"etcd.{name}" for name in EtcdOptions.__slots__}
    expected |= {f"interface.{name}" for name in InterfaceOptions.__slots__}
    expected |= {f"dataplane.{name}" for name in DataplaneOptions.__slots__}
    expected |= {f"firewall.{name}" for name in FirewallOptions.__slots__}
    expected |= {f"kube.{name}" for name in KubeOptions.__slots__}
    assert sorted(fields) == sorted([*expected, "etcd.password"])  # which has a flag for a file, too


def test_the_table_below_covers_every_flag() -> None:
    switches = {flag.name for flag in AGENT_FLAGS if flag.switch}
    files = {"etcd-password-file"}  # its text is no value, but the name of a file with one
    assert {row[0] for row in VALUES} | files | switches | {flag.name for flag in IGNORED_FLAGS} == set(FLAGS)


@pytest.mark.parametrize(("name", "text", "field", "value"), VALUES)
def test_a_flag_sets_its_option_in_every_spelling_and_by_environment(
    name: str, text: str, field: str, value: object
) -> None:
    for words in spellings(FLAGS[name], text):
        options = read(*words)
        assert attrgetter(field)(options) == value, words
        assert only_changed(options, field)
    if text:  # as for flanneld an empty variable is none
        assert attrgetter(field)(read(**{FLAGS[name].variable: text})) == value


def only_changed(options: Options, field: str) -> bool:
    """Tell whether everything but `field` has its default."""
    part, _, name = field.rpartition(".")
    if not part:
        return replace(options, **{name: getattr(Options(), name)}) == Options()
    inner = replace(getattr(options, part), **{name: attrgetter(field)(Options())})
    return replace(options, **{part: inner}) == Options()


def test_variables_are_named_like_flannelds() -> None:
    assert FLAGS["etcd-endpoints"].variable == "FLANNELD_ETCD_ENDPOINTS"
    assert FLAGS["ip-masq"].variable == "FLANNELD_IP_MASQ"
    assert FLAGS["v"].variable == "FLANNELD_V"


@pytest.mark.parametrize("word", GO_BOOLS)
def test_a_switch_takes_gos_words_after_the_equals_sign(word: str) -> None:
    for words in spellings(FLAGS["release-on-exit"], word):
        assert read(*words).release_on_exit is GO_BOOLS[word]
    assert read(FLANNELD_RELEASE_ON_EXIT=word).release_on_exit is GO_BOOLS[word]


def test_go_knows_these_words_for_true_and_false_and_no_others() -> None:
    assert {word for word, value in GO_BOOLS.items() if value} == {"1", "t", "T", "true", "TRUE", "True"}
    assert {word for word, value in GO_BOOLS.items() if not value} == {"0", "f", "F", "false", "FALSE", "False"}


@pytest.mark.parametrize("word", ["--release-on-exit", "-release-on-exit"])
def test_a_bare_switch_is_true_and_never_takes_the_next_word(word: str) -> None:
    assert read(word).release_on_exit is True
    assert read(word, "--healthz-port", "80") == replace(Options(), release_on_exit=True, healthz_port=80)
    assert "unexpected argument 'false': a switch takes its value after '='" in usage_error(word, "false")


def test_a_flag_wins_over_its_variable() -> None:
    assert read("--healthz-port=1", FLANNELD_HEALTHZ_PORT="2").healthz_port == 1
    assert read("--iface=a", FLANNELD_IFACE="b").interface.iface == ("a",)
    assert read("--public-ip=", FLANNELD_PUBLIC_IP="192.0.2.1").interface.public_ip is None
    assert read("--release-on-exit=false", FLANNELD_RELEASE_ON_EXIT="true").release_on_exit is False
    assert read("--healthz-port=1", FLANNELD_HEALTHZ_PORT="nonsense").healthz_port == 1


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(**{flag.variable: "" for flag in AGENT_FLAGS}) == Options()


def test_a_repeatable_flag_keeps_its_order_and_drops_empty_values() -> None:
    words = ["--iface=eth1", "-iface", "192.0.2.1", "--iface=", "--iface-regex=^a,b$", "-iface-regex=c"]
    assert read(*words).interface.iface == ("eth1", "192.0.2.1")
    assert read(*words).interface.iface_regex == ("^a,b$", "c")


def test_a_variable_for_a_repeatable_flag_is_one_value_as_in_flanneld() -> None:
    assert read(FLANNELD_IFACE_REGEX="^eth[0-9]{1,2}$").interface.iface_regex == ("^eth[0-9]{1,2}$",)


def test_of_a_flag_given_twice_the_last_counts_but_all_are_checked() -> None:
    assert read("--healthz-port=1", "-healthz-port=2").healthz_port == 2
    assert "'x'" in usage_error("--healthz-port=x", "--healthz-port=2")


@pytest.mark.parametrize("flag", IGNORED_FLAGS, ids=lambda flag: flag.name)
def test_flags_of_glog_and_klog_are_ignored_in_every_spelling(flag: Flag) -> None:
    for words in spellings(flag, "INFO"):
        assert read(*words, "--healthz-port=1").healthz_port == 1
    if flag.switch:
        assert read(f"-{flag.name}", "-healthz-port=1").healthz_port == 1


@pytest.mark.parametrize(("name", "text", "reason"), FAULTY)
def test_a_faulty_value_is_one_line_that_names_its_source(name: str, text: str, reason: str) -> None:
    for words in spellings(FLAGS[name], text):
        message = usage_error(*words)
        assert message.startswith(f"{FLAGS[name].spelling}: ")
        assert reason in message
    if text:
        message = usage_error(**{FLAGS[name].variable: text})
        assert message.startswith(f"environment variable {FLAGS[name].variable}: ")
        assert reason in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ifcae=eth0"], "unknown flag '--ifcae': did you mean --iface?"),
        (["-etcd-endpoint", "http://a:1"], "unknown flag '--etcd-endpoint': did you mean --etcd-endpoints?"),
        (["--etcd"], "unknown flag '--etcd'"),  # no abbreviations
        (["-ifac=eth0"], "unknown flag '--ifac': did you mean --iface?"),
        (["--xyzzy"], "unknown flag '--xyzzy'"),
        (["-v5"], "unknown flag '--v5'"),
        (["---iface=a"], "unknown flag '---iface'"),
        (["--=a"], "unknown flag '--'"),
        (["--iface"], "--iface needs a value: --iface=NAME|IP"),
        (["-v"], "-v needs a value: -v=N"),
    ],
)
def test_a_mistaken_flag_is_one_line(words: list[str], message: str) -> None:
    assert usage_error(*words).startswith(message)


@pytest.mark.parametrize("words", [["status"], ["--healthz-port=1", "status"], ["--", "--iface=a"], ["-"]])
def test_a_stray_word_after_the_flags_is_refused(words: list[str]) -> None:
    assert usage_error("-release-on-exit", *words).startswith("unexpected argument ")


SPOKEN = "hunter2"


def test_a_password_is_in_no_representation_of_the_options() -> None:
    for options in (read(f"--etcd-password={SPOKEN}"), read(FLANNELD_ETCD_PASSWORD=SPOKEN)):
        assert options.etcd.password == SPOKEN
        assert SPOKEN not in f"{options} {options!r}"


@pytest.mark.parametrize(
    "words",
    [
        ["--etcd-password=hunter2", "--healthz-port=x"],
        ["--etcd-password", "hunter2", "--nonsense"],
        ["--etcd-password", "correct", "hunter2"],
        ["--etcd-pasword=hunter2"],
        ["--etcd-pasword", "hunter2"],
        ["--etcd-password:hunter2"],
        ["-etcd-passwordhunter2"],
        ["--etcd-endpoints=http://root:hunter2@192.0.2.1:2379"],
        ["--etcd-endpoints=http://root:hunter2,x@192.0.2.1:2379"],
    ],
)
def test_a_password_is_in_no_error(words: list[str]) -> None:
    assert SPOKEN not in usage_error(*words)


def test_a_password_in_the_environment_is_in_no_error() -> None:
    assert SPOKEN not in usage_error("stray", "--public-ip=x", FLANNELD_ETCD_PASSWORD=SPOKEN)


def test_a_password_file_is_the_password_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "password"
    for text in (SPOKEN, f"{SPOKEN}\n", f"{SPOKEN}\r\n"):
        file.write_text(text, newline="")
        for options in (read(f"--etcd-password-file={file}"), read(FLANNELD_ETCD_PASSWORD_FILE=str(file))):
            assert options.etcd.password == SPOKEN
            assert SPOKEN not in repr(options)


def test_two_passwords_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SPOKEN)
    for error in (
        usage_error("--etcd-password=x", f"--etcd-password-file={file}"),
        usage_error(f"--etcd-password-file={file}", FLANNELD_ETCD_PASSWORD=SPOKEN),
    ):
        assert error.startswith("--etcd-password and --etcd-password-file are both given")


DASHES, NAMES = st.sampled_from(["-", "--"]), st.sampled_from(sorted(FLAGS))
WORDS = st.one_of(
    st.text(max_size=12).filter(lambda text: not re.fullmatch(r"--?(h|help|version)(=.*)?", text)),
    st.builds("{}{}{}{}".format, DASHES, NAMES, st.sampled_from("= "), st.text()),
    st.builds("{}{}".format, DASHES, NAMES),
)


@given(
    st.lists(WORDS, max_size=6), st.dictionaries(st.sampled_from([flag.variable for flag in AGENT_FLAGS]), st.text())
)
def test_whatever_is_typed_gives_options_or_one_usage_error(words: list[str], environ: dict[str, str]) -> None:
    try:
        assert isinstance(agent_options(words, environ), Options)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1, error
