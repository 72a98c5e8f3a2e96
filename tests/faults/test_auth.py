"""An etcd that asks for a user: its tokens run out, and are forgotten when it is started again."""

from __future__ import annotations

import time

import pytest

from tests.faults.cluster import PASSWORD, cluster
from tests.faults.recorder import Recorder
from tests.support.labs import NEEDS_NETNS

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

TOKEN_S = 2
CONVERGE_S = 5.0


def test_the_token_runs_out(record: Recorder) -> None:
    """A quiet watch outlives its token; what needs a new one is the next call, here after a restart."""
    with cluster(1, f"--auth-token-ttl={TOKEN_S}", user="root") as one:
        member = one.members[0]
        action = f"tokens live {TOKEN_S} s: a change after {3 * TOKEN_S} s, etcd started again, a change"
        with record.fault("etcd, one member", "auth token expired", action, *one.flows(), limit_s=CONVERGE_S) as fault:
            time.sleep(3 * TOKEN_S)
            mark = one.mark(member)
            fault.wait_right(time.monotonic(), lambda: one.both_know(mark))
            member.server.kill()
            member.server.start()
            back_s = time.monotonic()
            mark = one.mark(member)
            fault.wait_right(back_s, lambda: one.both_know(mark))
        for host in (one.h1, one.h2):
            assert PASSWORD not in host.log_file.read_text()
