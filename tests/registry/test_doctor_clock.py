"""The doctor compares this host's clock with that of the registry's servers, whatever else they answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flannel_udp.doctor.clock import ask_clock
from flannel_udp.doctor.finding import Verdict
from flannel_udp.lab.etcd_server import EtcdServer, EtcdTls
from flannel_udp.options import EtcdOptions, KubeOptions, Options
from tests.registry.certificates import make_authority, make_certificate


@contextmanager
def server_whose_clock_is(ahead: timedelta, code: int) -> Iterator[str]:
    """Run an HTTP server whose answers are dated so far ahead; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(code)
            self.send_header("Date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("code", [200, 401, 404])
def test_a_clock_that_is_off_is_a_fault(code: int) -> None:
    with server_whose_clock_is(timedelta(days=2), code) as url:
        found = ask_clock(Options(etcd=EtcdOptions(endpoints=("http://127.0.0.1:1", url))))
        assert found.verdict is Verdict.FAULT
        assert found.what == (
            f"the clock of this host is -2.0 days from that of {url}: "
            "certificates and tokens that are valid may be refused, and others taken"
        )
        kube = Options(kube=KubeOptions(subnet_mgr=True, api_url=url))
        assert ask_clock(kube).what == found.what


def test_etcds_own_clock_is_asked(etcd: EtcdServer) -> None:
    found = ask_clock(Options(etcd=EtcdOptions(endpoints=(etcd.endpoint,))))
    assert found.verdict is not Verdict.FAULT
    assert found.what.endswith(f", and as that of {etcd.endpoint}")


def test_also_by_tls_that_asks_for_a_certificate(etcd_directory: Path, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    server, client = (make_certificate(tmp_path, name, authority, "IP:127.0.0.1") for name in ("server", "client"))
    tls = EtcdTls(server.certfile, server.keyfile, authority.certfile)
    etcd = EtcdServer(etcd_directory, tls=tls)
    etcd.start()
    try:
        options = EtcdOptions(endpoints=(etcd.endpoint,), certfile=client.certfile, keyfile=client.keyfile)
        assert ask_clock(Options(etcd=options)).what.endswith(f", and as that of {etcd.endpoint}")
    finally:
        etcd.stop()


def test_nobody_who_tells_is_no_fault() -> None:
    found = ask_clock(Options(etcd=EtcdOptions(endpoints=("http://127.0.0.1:1",))))
    assert found.verdict is not Verdict.FAULT
    assert "as that of" not in found.what
