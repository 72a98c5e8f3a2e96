"""What `flannel-udp cloud routes` writes: the provider's route tables, and what is done in them."""

from __future__ import annotations

from typing import TextIO

from flannel_udp.admin.shapes import CloudRoute, CloudRoutes
from flannel_udp.admin.table import plain, table_lines, write_lines

_HEADINGS = ("TABLE", "DESTINATION", "LEADS TO", "IS", "DOES", "WHY")


def show_cloud_routes(document: CloudRoutes, stream: TextIO) -> None:
    """Write where this host stands, and one line a route of the overlay."""
    looked = document["looked_ago_s"]
    lines = [f"{document['provider']}: {document['here'] or 'who this host is, is not known yet'}"]
    lines += [f"looked {looked:.0f} s ago" if looked is not None else "no look yet"]
    if document["error"] is not None:
        lines.append(f"fault: {plain_line(document['error'])}")
    if document["cleaner"] is not None:
        who = "this one" if document["cleans"] else f"that of {document['cleaner']}"
        lines.append(f"the host that removes routes of hosts that are gone: {who}")
    lines += [
        f"{table['id']}: {table['routes']} routes" + ("" if table["limit"] is None else f" of {table['limit']}")
        for table in document["tables"]
    ]
    if document["routes"]:
        lines += ["", *table_lines(_HEADINGS, [_cells(route) for route in document["routes"]])]
    write_lines(lines, stream)


def plain_line(text: str) -> str:
    """Return a text that others may have had a hand in so that it stays one line, however long."""
    return text if text.isprintable() else repr(text)


def _cells(route: CloudRoute) -> tuple[str, ...]:
    action, due_in_s = route["action"] or "-", route["due_in_s"]
    when = f" in {due_in_s:.0f} s" if route["action"] and due_in_s else ""
    return (
        *(route["table"], route["destination"], plain(route["target"] or "-"), route["verdict"]),
        *(f"{action}{when}", route["text"]),
    )
