"""The iptables dialect: two chains of ours, filled by `iptables-restore --noflush`, and one jump to each.

Each is named by itself: two agents that start at the same moment may both fill both, one the first and the other the
second last, and both keep what they have.

Which iptables (nft-backed or legacy) is whatever the name means on this host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.applier import Applier
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.rules import Rule, Rules, Verdict
from flannel_udp.host.firewall.tool import LOCK_WAIT_S, RESOURCE_PROBLEM, Finished, run_tool

_NO_SUCH_CHAIN = 1  # exit statuses of iptables(8): 1 other errors, 3 what the kernel has not
_NOT_IN_KERNEL = 3
# What the variant "legacy" says without the module of the table, and without ip_tables: its own modprobe is refused, as
# the agent has given up CAP_SYS_MODULE. iptables-nft makes its tables.
_NO_SUCH_TABLE = "Table does not exist"
_NO_TABLES = "tables who?"
_NO_SUCH_FAMILY = "Address family not supported by protocol"  # likewise, of one booted with ipv6.disable=1


@dataclass(frozen=True, slots=True)
class _Chain:
    """One of our chains, the built-in chain that jumps to it, and the comment on all its rules."""

    table: str
    name: str
    base: str
    comment: str

    @property
    def jump(self) -> str:
        """The jump as iptables prints it. It is appended, as flanneld does: what an admin put before it goes first."""
        return f"-A {self.base} {self.comment_match} -j {self.name}"

    @property
    def comment_match(self) -> str:
        """The comment as a match."""
        return f'-m comment --comment "{self.comment}"'


_FORWARD = _Chain("filter", "FLANNEL-FWD", "FORWARD", "flanneld forward")
_MASQUERADE = _Chain("nat", "FLANNEL-POSTRTG", "POSTROUTING", "flanneld masq")
_CHAINS = (_FORWARD, _MASQUERADE)

# Where a rule of ours, or of flanneld's, names the overlay: what may be forwarded, and what is masqueraded towards it.
_NAMES_OVERLAY = (
    re.compile(r"(?<!! )-[sd] (\S+) .*-j ACCEPT$"),
    re.compile(r"(?<!! )-d (\S+) .*-j MASQUERADE"),
)


class Iptables(Applier):
    """The chains ``FLANNEL-FWD`` and ``FLANNEL-POSTRTG``, with a suffix where those are another overlay's."""

    name = "iptables"
    # A message about a jump that was removed names the chain that it was in, and not always where it led.
    watched = (b"FLANNEL-", b"POSTROUTING\0", b"FORWARD\0")

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._chains = _CHAINS
        self._seen: dict[tuple[int, str, str], Finished] = {}
        """What was listed, by IP version, table and chain, since `locate` or our last change: a run each, and each
        takes a while on a busy host."""

    async def locate(self, rules: Rules) -> tuple[str, ...]:
        """Look whose rules flannel's chains hold."""
        self._seen.clear()
        chains, lines = [], []
        for chain in _CHAINS:
            found = networks_in(await self._rules(rules.version, chain) or [])
            ours = _named(chain, self._owner.suffix) if self._owner.is_others(found) else chain
            chains.append(ours)
            if ours is not chain and _wanted(chain, rules):
                lines.append(
                    f"{chain.name} holds the rules of another overlay, {', '.join(found)}: ours are in {ours.name}"
                )
        self._chains = (chains[0], chains[1])
        return tuple(lines)

    async def sweep(self, version: int) -> None:
        """Remove our chains of other names."""
        others = [_named(chain, suffix) for chain in _CHAINS for suffix in self._owner.suffixes]
        unused = [chain for chain in others if chain not in self._chains]
        await self._commit(version, "".join([await self._removal(version, chain) for chain in unused]))

    def listing_of(self, rules: Rules) -> str:
        """Return, for each chain that is wanted, the jump to it and its rules."""
        lines = (line for chain in self._chains if _wanted(chain, rules) for line in _lines(chain, rules))
        return "".join(f"{line}\n" for line in lines)

    async def listing(self, version: int) -> str:
        """Return the jumps to our chains and the rules in them."""
        return "".join([await self._listing_of_chain(version, chain) for chain in self._chains])

    async def _listing_of_chain(self, version: int, chain: _Chain) -> str:
        lines = await self._jumps(version, chain) + (await self._rules(version, chain) or [])
        return "".join(f"{line}\n" for line in lines)

    async def apply(self, rules: Rules) -> None:
        """Flush and fill our chains; the jump is moved only if there is none, or more than one."""
        await self._commit(rules.version, "".join([await self._script(chain, rules) for chain in self._chains]))

    async def take_down(self, rules: Rules) -> bool:
        """Have iptables-restore undo what we did: it refuses a jump that is not there."""
        await self.locate(rules)
        unmade = (
            _format_table(chain, _unmaking(chain, [chain.jump])) for chain in self._chains if _wanted(chain, rules)
        )
        self._seen.clear()
        script = "".join(unmade)
        return not script or (await run_tool(*_restore(rules.version), stdin=script)).status == 0

    def commands_against(self, rules: Rules) -> list[str]:
        """Return the same as commands of iptables."""
        tool = f"{family_of(rules.version).iptables} -w -t"
        return [
            f"{tool} {chain.table} {words}"
            for chain in self._chains
            if _wanted(chain, rules)
            for words in (*_undo([chain.jump]), f"-F {chain.name}", f"-X {chain.name}")
        ]

    async def takes(self, rules: Rules) -> bool:
        """Let iptables-restore read the rules without committing them."""
        tried = await run_tool(*_restore(rules.version), "--test", stdin=format_script(rules))
        if tried.status == RESOURCE_PROBLEM:  # the lock, or no permission: nothing was learned
            _check(tried)
        return tried.status == 0

    async def _script(self, chain: _Chain, rules: Rules) -> str:
        if not _wanted(chain, rules):
            return await self._removal(rules.version, chain)
        # Asked here, since iptables-restore does not say what is lacking.
        _check(await self._list_chain(rules.version, chain.table, chain.base))
        jumps = await self._jumps(rules.version, chain)
        new_jump, *lines = _lines(chain, rules)
        return _format_table(chain, lines if len(jumps) == 1 else [*_undo(jumps), new_jump, *lines])

    async def _removal(self, version: int, chain: _Chain) -> str:
        """Return what removes the chain and the jumps to it; nothing if there is none."""
        jumps = await self._jumps(version, chain)
        if not jumps and await self._rules(version, chain) is None:
            return ""
        return _format_table(chain, _unmaking(chain, jumps))

    async def _jumps(self, version: int, chain: _Chain) -> list[str]:
        found = await self._list_chain(version, chain.table, chain.base)
        if _lacks_table(found):
            return []
        return [line for line in _check(found).output.splitlines() if line.endswith(f"-j {chain.name}")]

    async def _rules(self, version: int, chain: _Chain) -> list[str] | None:
        """Return the rules in our chain, ``None`` if it does not exist."""
        found = await self._list_chain(version, chain.table, chain.name)
        if found.status == _NO_SUCH_CHAIN or _lacks_table(found):
            return None
        return [line for line in _check(found).output.splitlines() if line.startswith("-A ")]

    async def _list_chain(self, version: int, table: str, chain: str) -> Finished:
        key = version, table, chain
        if key not in self._seen:
            command = family_of(version).iptables, "--wait", str(LOCK_WAIT_S), "--table", table, "--list-rules", chain
            self._seen[key] = await run_tool(*command)
        return self._seen[key]

    async def _commit(self, version: int, script: str) -> None:
        if not script:
            return
        try:
            _check(await run_tool(*_restore(version), stdin=script))
        finally:
            self._seen.clear()


def format_script(rules: Rules, suffix: str = "") -> str:
    """Return what makes `iptables-restore --noflush` set these rules up where nothing of ours is there yet."""
    chains = [_named(chain, suffix) for chain in _CHAINS if _wanted(chain, rules)]
    return "".join(_format_table(chain, _lines(chain, rules)) for chain in chains)


def networks_in(lines: Iterable[str]) -> list[str]:
    """Return the overlay networks that the rules of a chain are for, as iptables prints both."""
    found = (match[1] for line in lines for pattern in _NAMES_OVERLAY for match in pattern.finditer(line))
    return list(dict.fromkeys(found))


def _named(chain: _Chain, suffix: str) -> _Chain:
    return replace(chain, name=chain.name + suffix)


def _wanted(chain: _Chain, rules: Rules) -> tuple[Rule, ...]:
    return rules.forward if chain.base == _FORWARD.base else rules.masquerade


def _lines(chain: _Chain, rules: Rules) -> list[str]:
    """Return the jump to a chain and the rules in it, as iptables prints them."""
    return [chain.jump, *(_format_rule(chain, rule, rules.random_fully) for rule in _wanted(chain, rules))]


def _format_table(chain: _Chain, lines: list[str]) -> str:
    # Naming the chain makes it, or flushes it if it exists.
    return "\n".join([f"*{chain.table}", f":{chain.name} - [0:0]", *lines, "COMMIT", ""])


def _format_rule(chain: _Chain, rule: Rule, random_fully: bool) -> str:
    words = [f"-A {chain.name}"]
    for flag, side in (("-s", rule.source), ("-d", rule.destination)):
        if side:
            words.append(f"{'! ' if side.outside else ''}{flag} {side.network}")
    if rule.mark:
        words.append(f"-m mark --mark {rule.mark:#x}/{rule.mark:#x}")
    words += [chain.comment_match, f"-j {rule.verdict.name}"]
    if random_fully and rule.verdict is Verdict.MASQUERADE:
        words.append("--random-fully")
    return " ".join(words)


def _unmaking(chain: _Chain, jumps: list[str]) -> list[str]:
    """Return what removes a chain that is empty, and the jumps to it."""
    return [*_undo(jumps), f"-X {chain.name}"]


def _undo(jumps: list[str]) -> list[str]:
    return [line.replace("-A ", "-D ", 1) for line in jumps]


def _restore(version: int) -> tuple[str, ...]:
    return f"{family_of(version).iptables}-restore", "--noflush", f"--wait={LOCK_WAIT_S}"


def _lacks_table(done: Finished) -> bool:
    """Tell whether the kernel has no such table: there is nothing in it then, and nothing can be put there."""
    lacks = (_NO_SUCH_TABLE, _NO_TABLES, _NO_SUCH_FAMILY)
    return done.status == _NOT_IN_KERNEL and any(why in done.errors for why in lacks)


def _check(done: Finished) -> Finished:
    if _lacks_table(done):
        if _NO_SUCH_FAMILY in done.errors:
            mend = "boot it without ipv6.disable=1, or leave out EnableIPv6"
            raise FlannelError(f"{done.command}: IPv6 is off in this kernel: {mend}")
        table = done.errors.partition("`")[2].partition("'")[0]
        family = done.command.partition("tables")[0]
        raise FlannelError(
            f"{done.command}: the kernel's module for table {table} is not loaded: modprobe -a {family}_tables "
            f"{family}table_{table} now, and a line for each in /etc/modules-load.d/flannel.conf for every boot, "
            "or EnableNFTables"
        )
    done.check_lock()
    if done.status != 0:
        raise done.failure()
    return done
