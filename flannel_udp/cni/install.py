"""Put the plugin where container runtimes look for it: one file that needs nothing but Python's standard library.

A zip archive that Python runs (PEP 441), so that it can be copied to any host: a console script works only where the
whole package is installed, and takes longer to start, since Python looks through that environment first.
"""

from __future__ import annotations

import io
import json
import py_compile
import re
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import flannel_udp
from flannel_udp.cni.request import DEFAULT_SUBNET_FILE
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.files.atomic import write_atomically

PLUGIN = "flannel"
CONFLIST = "10-flannel.conflist"
# 0.4.0: all plugins since 0.8 (2019) speak it, Ubuntu 22.04's too, and it has CHECK; flannel's own manifest has 0.3.1.
CONFLIST_TEXT = """\
{
  "name": "cbr0",
  "cniVersion": "0.4.0",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"""

MODULES = (
    *("__init__", "errors", "model", "files/__init__", "files/atomic", "files/subnet_env"),
    *("cni/__init__", "cni/delegate", "cni/errors", "cni/invoke", "cni/plugin", "cni/request", "cni/state"),
)
"""All that the plugin imports of ours."""

_MAIN = """\
import json
import sys

# An older Python would stumble over the imports, and the runtime tell of "no error message". 999: CNI spec, "Error".
if sys.version_info < (3, 10):
    msg = "flannel-udp's plugin needs Python 3.10 or later, and %s is %d.%d: flannel-udp cni install --python=..."
    msg %= (sys.executable, sys.version_info[0], sys.version_info[1])
    sys.stdout.write(json.dumps({"cniVersion": "0.4.0", "code": 999, "msg": msg}) + "\\n")
    sys.exit(1)

from flannel_udp.cni.plugin import main

sys.exit(main())
"""
_MAX_SHEBANG_BYTES = 127  # before Linux 5.1; 255 since


def install_plugin(bin_dir: Path, python: str) -> Path:
    """Write the plugin, to be run by this interpreter (absolute path), and return its path. Raises `FlannelError`."""
    # -I: neither PYTHONPATH nor the working directory decide what it imports. -S: nor does any installed package.
    shebang = f"#!{python} -IS\n".encode()
    if not re.fullmatch(r"/\S+", python) or len(shebang) > _MAX_SHEBANG_BYTES:
        raise UsageError(f"--python: {python!r} cannot begin a script: give an absolute path, short and without blanks")
    path = bin_dir / PLUGIN
    _write(path, shebang + _archive(), 0o755)
    return path


def install_conflist(conf_dir: Path, subnet_file: Path = DEFAULT_SUBNET_FILE) -> Path | None:
    """Write flannel's usual configuration and return its path, None where there is one. Raises `FlannelError`.

    By it the plugin reads `subnet_file`.
    """
    path = conf_dir / CONFLIST
    if path.exists():
        return None
    _write(path, _conflist(subnet_file).encode(), 0o644)
    return path


def _conflist(subnet_file: Path) -> str:
    if subnet_file == DEFAULT_SUBNET_FILE:
        return CONFLIST_TEXT
    document = json.loads(CONFLIST_TEXT)
    document["plugins"][0]["subnetFile"] = str(subnet_file)
    return json.dumps(document, indent=2) + "\n"


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        write_atomically(path, content, mode, directory_mode=0o755)
    except OSError as error:
        raise FlannelError(f"cannot write {path}: {error.strerror}") from None


def _archive() -> bytes:
    """Return the archive: every module as source, for any Python, and compiled for this one, which starts sooner."""
    package = Path(flannel_udp.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive, TemporaryDirectory() as folder:
        archive.writestr("__main__.py", _MAIN)
        for module in MODULES:
            source, compiled = package / f"{module}.py", Path(folder) / "compiled"
            # Unchecked: there is no file whose time could be compared. Another Python sees that it is not for it.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(source), str(compiled), f"flannel_udp/{module}.py", True, invalidation_mode=mode)
            archive.write(source, f"flannel_udp/{module}.py")
            archive.write(compiled, f"flannel_udp/{module}.pyc")
    return content.getvalue()
