"""The errors a user may meet. Each message is one line: what is wrong, where, and what to do.

``exit_code`` follows the command line's rule: 2 for wrong usage or configuration, 1 for everything else that failed.
"""

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return what a message about an unknown name ends with, where a known one is near; else nothing."""
    from difflib import get_close_matches  # noqa: PLC0415 - costs more to import than all of --version, and is rare

    near = get_close_matches(word, list(known), n=1)
    return f": did you mean {prefix}{near[0]}?" if near else ""


class FlannelError(Exception):
    """Something failed that the user should hear of in one line."""

    exit_code = 1


class UsageError(FlannelError):
    """A flag, an argument or the environment is wrong."""

    exit_code = 2


class UnusableFile(UsageError):
    """A file that a flag names is not there, cannot be read or makes no sense: a command ends, an agent waits."""


class NoThread(FlannelError):
    """A thread is refused, for `what`: Python says so by a RuntimeError, whose cause is clone(2)'s EAGAIN."""

    def __init__(self, what: str, error: RuntimeError) -> None:
        limits = "TasksMax= of the unit, pids.max of the cgroup, kernel.threads-max"
        super().__init__(f"cannot start {what}: {error}: see {limits}")


class Faults(FlannelError):
    """Several things are wrong; ``faults`` holds one line for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class ConfigError(Faults):
    """The network configuration is wrong; the faults are in the order of the document."""

    exit_code = 2


class RegistryError(FlannelError):
    """The registry could not do what was asked; asking again later may help."""


class ConfigMissing(RegistryError):
    """The registry can be reached and holds no network configuration yet."""


class RegistryDenied(RegistryError):
    """The registry refused us: wrong password, missing role, bad certificate, unwritable file."""


class SubnetTaken(RegistryError):
    """The key that was to be created exists already: somebody else was faster."""


class LeaseLost(RegistryError):
    """The key is no longer as we last wrote it: deleted, expired or taken by another host."""


class AddressClaimed(RegistryError):
    """Another host has our subnet under our address, and has just now taken it from us."""


class NoFreeSubnet(FlannelError):
    """Every subnet of the configured range is taken."""


class PortInUse(FlannelError):
    """Something else of this host has a UDP port that we need."""

    def __init__(self, text: str, port: int, version: int = 4) -> None:
        super().__init__(text)
        self.port, self.version = port, version


class Claimed(FlannelError):
    """Another agent of this host has what only one can have."""
