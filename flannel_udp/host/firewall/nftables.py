"""The nftables dialect: one table of ours a family, replaced whole in one transaction of `nft -f -`."""

from __future__ import annotations

from flannel_udp.host.firewall.applier import Applier
from flannel_udp.host.firewall.rules import Rule, Rules, Side, Verdict
from flannel_udp.host.firewall.tool import run_tool

_FAMILY = {4: "ip", 6: "ip6"}
_FORWARD = ("forward", "type filter hook forward priority filter; policy accept;", "flanneld forward")
_MASQUERADE = ("postrtg", "type nat hook postrouting priority srcnat; policy accept;", "flanneld masq")


class Nftables(Applier):
    """The tables ``flannel-ipv4`` and ``flannel-ipv6``."""

    name = "nft"
    watched = (b"flannel-ipv",)

    def listing_of(self, rules: Rules) -> str:
        """Return the table as `nft list table` prints it."""
        return format_table(rules)

    async def listing(self, version: int) -> str:
        """Return our table, empty if there is none (or if nft fails: then applying says why)."""
        found = await run_tool("nft", "list", "table", *_table(version).split())
        return found.output if found.status == 0 else ""

    async def apply(self, rules: Rules) -> None:
        """Replace our table in one transaction."""
        done = await run_tool("nft", "-f", "-", stdin=format_script(rules))
        if done.status != 0:
            raise done.failure()

    async def takes(self, rules: Rules) -> bool:
        """Let nft and the kernel check the transaction without committing it."""
        return (await run_tool("nft", "--check", "-f", "-", stdin=format_script(rules))).status == 0


def format_script(rules: Rules) -> str:
    """Return the transaction that makes these rules all that our table holds."""
    table = _table(rules.version)
    # Deleting a table that is not there would fail, adding one that is there does not.
    return f"add table {table}\ndelete table {table}\n{format_table(rules)}"


def format_table(rules: Rules) -> str:
    """Return our table as `nft list table` prints it, which is also what `nft -f` reads; empty for no rules."""
    if not rules:
        return ""
    chains = ((_FORWARD, rules.forward), (_MASQUERADE, rules.masquerade))
    texts = [_format_chain(*names, chain, rules) for names, chain in chains if chain]
    return f"table {_table(rules.version)} {{\n" + "\n".join(texts) + "}\n"


def _table(version: int) -> str:
    return f"{_FAMILY[version]} flannel-ipv{version}"


def _format_chain(name: str, hook: str, comment: str, chain: tuple[Rule, ...], rules: Rules) -> str:
    lines = [hook, *(f'{_format_rule(rule, rules)} comment "{comment}"' for rule in chain)]
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _format_rule(rule: Rule, rules: Rules) -> str:
    words = [f"meta mark & {rule.mark:#010x} == {rule.mark:#010x}"] if rule.mark else []
    sides = (("saddr", rule.source), ("daddr", rule.destination))
    words += [f"{_FAMILY[rules.version]} {field} {_format_side(side)}" for field, side in sides if side]
    random = " fully-random" if rules.random_fully and rule.verdict is Verdict.MASQUERADE else ""
    return " ".join([*words, rule.verdict.value + random])


def _format_side(side: Side) -> str:
    return f"{'!= ' if side.outside else ''}{side.network}"
