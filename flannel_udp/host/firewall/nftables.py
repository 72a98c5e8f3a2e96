"""The nftables dialect: one table of ours a family, replaced whole in one transaction of `nft -f -`."""

from __future__ import annotations

import re

from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.applier import Applier
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.rules import Rule, Rules, Side, Verdict
from flannel_udp.host.firewall.tool import run_tool

_FORWARD = ("forward", "type filter hook forward priority filter; policy accept;", "flanneld forward")
_MASQUERADE = ("postrtg", "type nat hook postrouting priority srcnat; policy accept;", "flanneld masq")

# Where a rule of ours, or of flanneld's, names the overlay: what may be forwarded, and what is masqueraded towards it.
_NAMES_OVERLAY = (
    re.compile(r"(?m)[sd]addr (?!!=)(\S+) (?:.* )?accept"),
    re.compile(r"(?m)daddr (?!!=)(\S+) (?:.* )?masquerade"),
)


class Nftables(Applier):
    """The tables ``flannel-ipv4`` and ``flannel-ipv6``, with a suffix where those are another overlay's."""

    name = "nft"
    watched = (b"flannel-ipv",)

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._suffix = ""

    async def locate(self, rules: Rules) -> tuple[str, ...]:
        """Look whose rules flannel's table holds."""
        found = networks_in(await self._list(_table(rules.version)))
        self._suffix = self._owner.suffix if self._owner.is_others(found) else ""
        if not (self._suffix and rules):
            return ()
        ours = _table(rules.version, self._suffix)
        return (
            f"table {_table(rules.version)} holds the rules of another overlay, {', '.join(found)}: ours are in {ours}",
        )

    async def sweep(self, version: int) -> None:
        """Remove our tables of other names."""
        for suffix in self._owner.suffixes:
            if suffix != self._suffix and await self._list(_table(version, suffix)):
                await self._commit(f"delete table {_table(version, suffix)}\n")

    def listing_of(self, rules: Rules) -> str:
        """Return the table as `nft list table` prints it."""
        return format_table(rules, self._suffix)

    async def listing(self, version: int) -> str:
        """Return our table, empty if there is none (or if nft fails: then applying says why)."""
        return await self._list(_table(version, self._suffix))

    async def apply(self, rules: Rules) -> None:
        """Replace our table in one transaction."""
        await self._commit(format_script(rules, self._suffix))

    async def take_down(self, rules: Rules) -> bool:
        """Delete our table."""
        if not rules:
            return True
        await self.locate(rules)
        return (await run_tool("nft", *self._deletion(rules).split())).status == 0

    def commands_against(self, rules: Rules) -> list[str]:
        """Return the same as a command."""
        return [f"nft {self._deletion(rules)}"] if rules else []

    def _deletion(self, rules: Rules) -> str:
        return f"delete table {_table(rules.version, self._suffix)}"

    async def takes(self, rules: Rules) -> bool:
        """Let nft and the kernel check the transaction without committing it."""
        return (await run_tool("nft", "--check", "-f", "-", stdin=format_script(rules))).status == 0

    async def _list(self, table: str) -> str:
        found = await run_tool("nft", "list", "table", *table.split())
        return found.output if found.status == 0 else ""

    async def _commit(self, transaction: str) -> None:
        done = await run_tool("nft", "-f", "-", stdin=transaction)
        if done.status != 0:
            raise done.failure()


def format_script(rules: Rules, suffix: str = "") -> str:
    """Return the transaction that makes these rules all that our table holds."""
    table = _table(rules.version, suffix)
    # Deleting a table that is not there would fail, adding one that is there does not.
    return f"add table {table}\ndelete table {table}\n{format_table(rules, suffix)}"


def networks_in(listing: str) -> list[str]:
    """Return the overlay networks that the rules of a table are for, as nft prints both."""
    return list(dict.fromkeys(match[1] for pattern in _NAMES_OVERLAY for match in pattern.finditer(listing)))


def format_table(rules: Rules, suffix: str = "") -> str:
    """Return our table as `nft list table` prints it, which is also what `nft -f` reads; empty for no rules."""
    if not rules:
        return ""
    chains = ((_FORWARD, rules.forward), (_MASQUERADE, rules.masquerade))
    texts = [_format_chain(*names, chain, rules) for names, chain in chains if chain]
    return f"table {_table(rules.version, suffix)} {{\n" + "\n".join(texts) + "}\n"


def _table(version: int, suffix: str = "") -> str:
    return f"{family_of(version).nft} flannel-ipv{version}{suffix}"


def _format_chain(name: str, hook: str, comment: str, chain: tuple[Rule, ...], rules: Rules) -> str:
    lines = [hook, *(f'{_format_rule(rule, rules)} comment "{comment}"' for rule in chain)]
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _format_rule(rule: Rule, rules: Rules) -> str:
    words = [f"meta mark & {rule.mark:#010x} == {rule.mark:#010x}"] if rule.mark else []
    sides = (("saddr", rule.source), ("daddr", rule.destination))
    words += [f"{family_of(rules.version).nft} {field} {_format_side(side)}" for field, side in sides if side]
    random = " fully-random" if rules.random_fully and rule.verdict is Verdict.MASQUERADE else ""
    return " ".join([*words, rule.verdict.value + random])


def _format_side(side: Side) -> str:
    return f"{'!= ' if side.outside else ''}{side.network}"
