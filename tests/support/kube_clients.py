"""Clients of the API server that a test opens, and that are closed after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube.client import KubeClient

Opened: TypeAlias = Callable[[KubeOptions], KubeClient]
"""What the fixture `opened` of tests/registry gives."""
