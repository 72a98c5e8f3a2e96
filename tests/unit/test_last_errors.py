"""What went wrong last in the parts of the agent."""

from __future__ import annotations

from flannel_udp.agent.last_errors import LastErrors


def test_each_part_has_its_last_error_also_when_it_is_over() -> None:
    errors = LastErrors()
    errors.note("lease", None)  # nothing was wrong
    errors.note("watch", "etcd is away")
    errors.note("watch", "etcd is away, and slow")
    errors.noter("firewall")("nft is missing")
    errors.note("watch", None)
    rows = errors.rows()
    assert {part: (row["text"], row["over"]) for part, row in rows.items()} == {
        "watch": ("etcd is away, and slow", True),
        "firewall": ("nft is missing", False),
    }
    assert all(row["ago_s"] >= 0 for row in rows.values())
    errors.note("watch", "again")
    assert errors.rows()["watch"]["over"] is False
