"""What the agent says of the provider's route tables, where the backend is of those that have some."""

from __future__ import annotations

import time

from flannel_udp.admin.shapes import CloudRoute, CloudRoutes, CloudTable
from flannel_udp.agent.state import AgentState
from flannel_udp.errors import FlannelError


def list_cloud_routes(state: AgentState) -> CloudRoutes:
    """Return what the last look found. Raises `FlannelError` where there is nothing to look at."""
    rooms = state.rooms
    if rooms is None:
        raise FlannelError(f"no network configuration yet: {state.phrase}")
    facts = rooms.network.facts().cloud
    if facts is None:
        raise FlannelError(f"the backend {rooms.backend.type} needs no routes of a cloud's")
    return CloudRoutes(
        provider=rooms.backend.type,
        here=facts.here,
        looked_ago_s=None if facts.looked_s is None else round(time.monotonic() - facts.looked_s, 1),
        error=facts.error,
        cleaner=facts.cleaner,
        cleans=facts.cleans,
        tables=[CloudTable(id=table.id, routes=table.routes, limit=table.limit) for table in facts.tables],
        routes=[
            CloudRoute(
                table=row.table,
                destination=row.destination,
                target=row.target,
                verdict=row.verdict,
                text=row.text,
                action=row.action,
                due_in_s=None if row.due_in_s is None else round(row.due_in_s, 1),
            )
            for row in facts.routes
        ],
    )
