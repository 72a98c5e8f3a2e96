"""The example manifest: Kubernetes would take it, and it gives the agent what it needs and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lightkube import codecs

from flannel_udp.cli.arguments import add_flags, make_parser, read_arguments
from flannel_udp.cli.commands import COMMANDS
from flannel_udp.cli.main import agent_options
from flannel_udp.doctor.cni import BIN_DIRS, CONF_DIR
from flannel_udp.options import Options
from tests.kube_api.manifest import OBJECTS, PATH, find
from tests.kube_api.server import ApiServer
from tests.support.backends import parse_config


@pytest.fixture
def pod() -> dict[str, Any]:
    spec: dict[str, Any] = find("DaemonSet")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def agent(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing["kind"])
def test_every_field_is_one_that_kubernetes_knows(thing: dict[str, Any]) -> None:
    """lightkube's models are made from Kubernetes' own schema; they drop what they do not know."""
    assert msgspec.to_builtins(codecs.from_dict(thing)) == thing


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    """A kubeconfig for the test server, which answers what kubectl asks about kinds."""
    with ApiServer() as api:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": api.url}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        yield path


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed (Debian: kubernetes-client)")
def test_kubectl_would_make_every_object(kubeconfig: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        # No schema to validate with: that is what the test above does.
        ["kubectl", "apply", "--dry-run=client", "--validate=false", "-f", str(PATH)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "namespace/kube-flannel created (dry run)",
        "serviceaccount/flannel created (dry run)",
        "clusterrole.rbac.authorization.k8s.io/flannel created (dry run)",
        "clusterrolebinding.rbac.authorization.k8s.io/flannel created (dry run)",
        "configmap/kube-flannel-cfg created (dry run)",
        "daemonset.apps/kube-flannel-udp created (dry run)",
    ]


def test_the_names_that_must_agree_agree(pod: dict[str, Any]) -> None:
    account, role, binding = find("ServiceAccount"), find("ClusterRole"), find("ClusterRoleBinding")
    namespace = find("Namespace")["metadata"]["name"]
    assert {thing["metadata"]["namespace"] for thing in OBJECTS if "namespace" in thing["metadata"]} == {namespace}
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["subjects"][0]["namespace"] == namespace
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {"name": "config", "configMap": {"name": find("ConfigMap")["metadata"]["name"]}} in pod["volumes"]
    spec = find("DaemonSet")["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {m["name"] for c in (*pod["initContainers"], *pod["containers"]) for m in c["volumeMounts"]}
    assert mounts == volumes
    assert len({container["image"] for container in (*pod["initContainers"], *pod["containers"])}) == 1


def test_the_agent_runs_before_there_is_a_network(pod: dict[str, Any]) -> None:
    assert pod["hostNetwork"] is True
    assert {"operator": "Exists"} in pod["tolerations"]
    assert pod["priorityClassName"] == "system-node-critical"


def test_the_agent_may_do_what_it_must(agent: dict[str, Any]) -> None:
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert "privileged" not in agent["securityContext"]
    mounts = {mount["name"]: mount["mountPath"] for mount in agent["volumeMounts"]}
    assert mounts["tun"] == "/dev/net/tun"
    assert mounts["run"] == str(Options().subnet_file.parent) == str(Options().control_socket.parent)
    assert mounts["xtables-lock"] == "/run/xtables.lock"  # iptables on the host and in the pod wait for each other
    assert mounts["config"] == str(Options().kube.net_config_path.parent)


def test_what_doctor_asks_about_the_hosts_plugins_is_the_hosts(pod: dict[str, Any], agent: dict[str, Any]) -> None:
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    mounts = {mount["mountPath"]: mount for mount in agent["volumeMounts"]}
    for folder in (CONF_DIR, BIN_DIRS[0]):
        assert paths[mounts[str(folder)]["name"]] == str(folder)
        assert mounts[str(folder)]["readOnly"]


def test_the_agent_takes_its_arguments(agent: dict[str, Any]) -> None:
    options = agent_options(agent["args"], {})
    assert options.kube.subnet_mgr
    assert options.firewall.ip_masq
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        get = agent[probe]["httpGet"]
        assert (get["host"], get["port"], get["path"]) == (options.healthz_ip, options.healthz_port, path)
    assert {variable["name"] for variable in agent["env"]} == {"NODE_NAME", "POD_NAME", "POD_NAMESPACE"}


def test_the_plugin_is_installed_where_the_host_has_its_plugins(pod: dict[str, Any]) -> None:
    plugin = pod["initContainers"][0]
    parser = make_parser("flannel-udp", "", "")
    command = COMMANDS["cni install"]
    flags = command.all_flags
    add_flags(parser, "flags", flags)
    words = plugin["command"]
    assert words[:3] == ["flannel-udp", "cni", "install"]
    given = read_arguments(parser, words[3:], flags, {})
    assert str(given["bin-dir"]) == plugin["volumeMounts"][0]["mountPath"]
    assert given["python"] == "/usr/bin/python3"  # the host's: the one that installs is in the image


def test_both_configurations_are_good() -> None:
    data = find("ConfigMap")["data"]
    parsed = parse_config(data["net-conf.json"].encode())
    assert parsed.config.backend.type == "udp"
    assert parsed.warnings == ()
    conflist = json.loads(data["cni-conf.json"])
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["flannel", "portmap"]
