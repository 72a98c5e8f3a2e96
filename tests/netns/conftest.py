"""Labs with our agent that several tests share; whoever disturbs one makes one of their own."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import STATE_DIR, Plan
from tests.support.agents import up_with_peers
from tests.support.labs import FRESH_NAMES, fresh_name
from tests.support.view import View, lesson_lab, viewed

_LAST_LINES = 60  # of an agent's log, where a test has failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, of a test that fails, what the agents said last in the labs that are up: those go with their logs."""
    report = yield
    if report.failed:
        for log in sorted(STATE_DIR.glob(f"{FRESH_NAMES}/*/agent.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            report.sections.append((f"{log.parent.name} of {log.parent.parent.name} said last", "\n".join(lines)))
    return report


@pytest.fixture(scope="session")
def needs_etcd() -> None:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd or etcdctl is not installed (apt-get install etcd-server etcd-client)")


@pytest.fixture(params=["file", "etcd"])
def registry(request: pytest.FixtureRequest) -> str:
    """Each of the registries a lab can have."""
    if request.param == "etcd":
        request.getfixturevalue("needs_etcd")
    return str(request.param)


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """Two hosts with our agent and a pod each, which know each other. For tests that leave them as they were."""
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


@pytest.fixture(scope="module", params=["file", "etcd"])
def shared_duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts, with each of the registries; the module's `duo` puts right what a test did to them."""
    if request.param == "etcd":
        request.getfixturevalue("needs_etcd")
    with Lab(Plan(fresh_name(), hosts=2, registry=request.param)) as lab:
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab of `view`: two hosts with a pod each, and the first lesson. Most modules have a `lab` of their own."""
    with lesson_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def view(lab: Lab) -> Iterator[View]:
    """The page's server of that lab."""
    with viewed(lab.name) as view:
        yield view
