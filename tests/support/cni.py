"""A container runtime as far as CNI goes: what libcni does with a configuration list, on a host of a lab.

Each plugin of the list is run with the CNI_ variables and its configuration on standard input: the list's name and
version, the capabilities it asked for as runtimeConfig, and the previous plugin's result as prevResult.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni.install import CONFLIST_TEXT, install_plugin
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import NETNS_DIR, ip_batch
from flannel_udp.lab.node import Host, Node

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins are."""

_pod_numbers = itertools.count(1)  # several runtimes serve one host, one test after the other

NEEDS_PLUGINS = pytest.mark.skipif(
    not (PLUGINS / "bridge").exists() or shutil.which("iptables") is None,
    reason="needs the packages containernetworking-plugins and iptables",
)


class PluginError(Exception):
    """The error that a plugin answered with."""

    def __init__(self, error: Mapping[str, Any], stderr: str) -> None:
        super().__init__(error, stderr)
        self.code = error["code"]
        self.msg = error["msg"]


class CniPod(Node):
    """A namespace that a runtime made for a container; the lab removes it."""

    def __init__(self, host: Host, number: int, ports: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(host.plan, host.name, f"p{number}")
        self.host = host
        ip_batch([f"netns add {self.namespace}"])
        self.configure("link set lo up")
        self.container_id = f"container-{host.name}-{number}"
        self.ports = ports
        self.result: dict[str, Any] = {}

    @property
    def ip(self) -> IPv4Address:
        """The address that ADD gave it."""
        return IPv4Address(ip_interface(self.result["ips"][0]["address"]).ip)


class Runtime:
    """Runs the plugins of one host. `plugins` are directories looked through before Debian's."""

    def __init__(self, host: Host, folder: Path, version: str = "1.0.0", plugins: Sequence[Path] = ()) -> None:
        self.host = host
        self.folder = folder / host.name
        self.state_dir = self.folder / "flannel"
        self.addresses_dir = self.folder / "networks"
        bin_dir = self.folder / "bin"
        install_plugin(bin_dir, os.path.realpath(shutil.which("python3") or "/usr/bin/python3"))
        self.cni_path = ":".join(map(str, (*plugins, bin_dir, PLUGINS)))
        self.conflist = json.loads(CONFLIST_TEXT) | {"cniVersion": version}
        flannel = self.conflist["plugins"][0]
        flannel["subnetFile"], flannel["dataDir"] = str(host.subnet_file), str(self.state_dir)
        flannel["ipam"] = {"dataDir": str(self.addresses_dir)}

    @property
    def flannel(self) -> dict[str, Any]:
        """The configuration of our plugin in the list."""
        conf: dict[str, Any] = self.conflist["plugins"][0]
        return conf

    def new_pod(self, ports: Sequence[Mapping[str, Any]] = ()) -> CniPod:
        """Make a namespace for a container, with these port mappings."""
        return CniPod(self.host, next(_pod_numbers), ports)

    def add(self, pod: CniPod) -> None:
        """Run ADD of every plugin, in order; the pod keeps the last result. Raises `PluginError`."""
        previous = None
        for plugin in self.conflist["plugins"]:
            previous = self.call("ADD", plugin, pod, previous)
        pod.result = previous or {}

    def delete(self, pod: CniPod, *, netns: bool = True) -> None:
        """Run DEL of every plugin, in reverse order. Raises `PluginError`."""
        for plugin in reversed(self.conflist["plugins"]):
            self.call("DEL", plugin, pod, pod.result or None, netns=netns)

    def check(self, pod: CniPod) -> None:
        """Run CHECK of every plugin, in order. Raises `PluginError`."""
        for plugin in self.conflist["plugins"]:
            self.call("CHECK", plugin, pod, pod.result)

    def call(
        self,
        command: str,
        plugin: Mapping[str, Any],
        pod: CniPod | None = None,
        previous: Mapping[str, Any] | None = None,
        *,
        netns: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Run one command of one plugin and return its result. Raises `PluginError`."""
        process = self.start(command, plugin, pod, previous, netns=netns, extra=extra)
        stdout, stderr = process.communicate(timeout=120)
        if process.returncode != 0:
            raise PluginError(json.loads(stdout), stderr)
        return json.loads(stdout) if stdout.strip() else None

    def start(
        self,
        command: str,
        plugin: Mapping[str, Any],
        pod: CniPod | None = None,
        previous: Mapping[str, Any] | None = None,
        *,
        netns: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Start one command of one plugin, all of its configuration written."""
        conf = copy.deepcopy(dict(plugin)) | {"name": self.conflist["name"], "cniVersion": self.conflist["cniVersion"]}
        if "capabilities" in conf and pod is not None and pod.ports:
            conf["runtimeConfig"] = {"portMappings": list(pod.ports)}
        if previous is not None:
            conf["prevResult"] = previous
        env = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "CNI_COMMAND": command, "CNI_PATH": self.cni_path}
        if pod is not None:
            env |= {"CNI_CONTAINERID": pod.container_id, "CNI_IFNAME": "eth0"}
            env["CNI_NETNS"] = str(NETNS_DIR / pod.namespace) if netns else ""
        executable = shutil.which(conf["type"], path=self.cni_path)
        assert executable, conf["type"]
        process = self.host.popen(
            [executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
        assert process.stdin
        process.stdin.write(json.dumps(conf | dict(extra or {})))
        process.stdin.close()
        process.stdin = None  # or communicate() would want to close it too
        return process

    # What is left of containers

    def attachments(self) -> list[str]:
        """Return the containers that our plugin keeps something for."""
        return sorted(path.name for path in self.state_dir.iterdir()) if self.state_dir.exists() else []

    def addresses(self) -> dict[str, str]:
        """Return the addresses that host-local gave out, each with its container."""
        given = [path for path in self.addresses_dir.rglob("*") if path.is_file() and path.name[0].isdecimal()]
        return {path.name: path.read_text().split()[0] for path in given}

    def veths(self) -> list[str]:
        """Return the host's ends of the pods' interfaces."""
        links = json.loads(self.host.run(["ip", "-json", "link", "show", "type", "veth"]).stdout)
        return [link["ifname"] for link in links if link["ifname"] != "eth0"]

    def nat_rules(self) -> list[str]:
        """Return the rules that name a container."""
        rules = self.host.run(["iptables", "-w", "-t", "nat", "-S"]).stdout.splitlines()
        return [rule for rule in rules if "container-" in rule]

    def remains(self) -> list[str]:
        """Return all that is left of containers."""
        return [*self.attachments(), *self.addresses(), *self.veths(), *self.nat_rules()]


def without_the_labs_bridge(lab: Lab) -> Lab:
    """Remove what the lab makes in place of a CNI plugin."""
    for host in lab.hosts:
        host.configure("link del cni0")
    return lab
