"""The certificates of the other tests are what strict clients take, whatever this Python is content with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.registry.certificates import make_authority, make_certificate
from tests.support.patience import PATIENCE_S


def test_a_strict_verification_takes_them(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    pair = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1,DNS:localhost")
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", authority.certfile, pair.certfile],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
