"""Where programs are looked for: PATH, and after it the system's folders for what root needs (ip, nft, iptables)."""

from __future__ import annotations

import os

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_BIN = ("/usr/local/bin", "/usr/bin", "/bin")


def complete_search_path() -> None:
    """Complete PATH for this process and all that it runs."""
    os.environ["PATH"] = completed(os.environ.get("PATH"))


def completed(path: str | None) -> str:
    """Return PATH with the folders that cron, a plain `su` and ordinary users lack; of none, the usual one.

    One that names none of the system's folders is somebody's choice of programs, and stays as it is.
    """
    folders = (path or os.defpath).split(os.pathsep)
    if not any(folder.rstrip("/") in (*_BIN, *SBIN) for folder in folders):
        return os.pathsep.join(folders)
    return os.pathsep.join([*folders, *(folder for folder in SBIN if folder not in folders)])
