"""From the flags ``--registry`` and ``--kube-subnet-mgr`` to a registry."""

from __future__ import annotations

import os
from pathlib import Path

from flannel_udp.errors import UsageError
from flannel_udp.options import Options
from flannel_udp.registry import Registry


def open_registry(options: Options, mark: int = 0, *, in_use: bool = False, onlooker: bool = False) -> Registry:
    """Return the registry that `options` names, not yet connected; the caller closes it.

    `mark` is the host's, which the leases will bear that are taken with it; 0 where none is taken. With `in_use`
    another process of this host works with it: a file that is not there is an outage then, too.
    With `onlooker` this host's own part in it is no matter, so that nobody has to say which of Kubernetes' nodes it is.
    Call it inside the event loop that will use it. Raises `UsageError` for a flag, an endpoint or a certificate file
    that is wrong.
    """
    if options.kube.subnet_mgr:
        try:
            from flannel_udp.registry.kube.registry import KubeRegistry  # noqa: PLC0415 - an extra, not installed everywhere
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise UsageError(
                f"--kube-subnet-mgr needs the Python package {package}: pip install 'flannel-udp[kube]'"
            ) from None
        return KubeRegistry(options.kube, onlooker=onlooker)
    kind, _, path = options.registry.partition(":")
    # What fails is raised, with its cause: gRPC's own lines on stderr would only come between ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here: gRPC takes longer to load than everything else, and a file needs none of it.
    if options.registry == "etcd":
        from flannel_udp.registry.etcd.registry import EtcdRegistry  # noqa: PLC0415 - see above

        return EtcdRegistry(options.etcd, mark)
    if kind == "file" and path:
        from flannel_udp.registry.file.registry import FileRegistry  # noqa: PLC0415 - see above

        return FileRegistry(Path(path), mark, in_use=in_use)
    raise UsageError(f"--registry {options.registry!r}: give etcd or file:PATH")
