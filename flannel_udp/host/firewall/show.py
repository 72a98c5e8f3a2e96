"""What `flannel-udp firewall show` prints: the rules in both dialects, without asking the kernel anything."""

from __future__ import annotations

from typing import Any

from flannel_udp.host.firewall import iptables, nftables
from flannel_udp.host.firewall.rules import Rule, Rules, Side

TEXTS = {"nftables": nftables.format_table, "iptables": iptables.format_script}


def show_text(rules: Rules, dialect: str, suffix: str = "") -> str:
    """Return one dialect's text, or with an empty `dialect` all, each under its name."""
    if dialect:
        return TEXTS[dialect](rules, suffix)
    return "\n".join(f"# {name}\n{text(rules, suffix) or '# no rules' + chr(10)}" for name, text in TEXTS.items())


def show_document(rules: Rules, dialect: str, suffix: str = "") -> dict[str, Any]:
    """Return what ``--json`` prints: the rules themselves, and one dialect's text or all."""
    texts = {name: text(rules, suffix) for name, text in TEXTS.items() if dialect in ("", name)}
    return {
        "masquerade": [_rule(rule) for rule in rules.masquerade],
        "forward": [_rule(rule) for rule in rules.forward],
        "random_fully": rules.random_fully,
        "text": texts,
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "mark": f"{rule.mark:#x}" if rule.mark else None,
        "source": _side(rule.source),
        "destination": _side(rule.destination),
        "verdict": rule.verdict.value,
    }


def _side(side: Side | None) -> str | None:
    return None if side is None else f"{'!' if side.outside else ''}{side.network}"
