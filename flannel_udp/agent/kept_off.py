"""Whether pods are put on this node: Kubernetes puts none where somebody says that the network is unavailable."""

from __future__ import annotations

from flannel_udp.model import Degradation, Entry


def degradations_of_own(entry: Entry) -> list[Degradation]:
    """Return what is said of our own entry, as the registry has it."""
    if entry.kept_off is None:
        return []
    text = (
        f"Kubernetes puts no pods on this node: NetworkUnavailable is true again ({entry.kept_off}), after the agent "
        "has cleared it: let what sets it leave it to the agent, a cloud controller manager by "
        "--configure-cloud-routes=false, and then start the agent again, which clears it"
    )
    return [Degradation("node", text)]
