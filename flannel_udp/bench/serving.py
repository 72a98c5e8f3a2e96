"""`bench serve`: what stands at the other host while `bench run --to` measures: iperf3 and a counter of datagrams."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from select import select
from typing import Any

from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.bench.choosing import lacking_to_count
from flannel_udp.bench.generators import GRACE_S, Counted, datagram_receiver, iperf3_server
from flannel_udp.bench.lines import FORMAT, IPERF3_PORT, PORT, Conversation
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

_LOGGER = logging.getLogger("bench")

_FIRST_S = 10.0
"""How long a client may take until it says what it wants."""
_REFUSAL_S = 1.0
"""How long whoever comes meanwhile may hold up the one who measures."""
_IDLE_S = 60.0 + 2 * GRACE_S
"""How long it may say nothing afterwards: the longest sample, and as long as a measure may take beyond it."""
_REFUSED_S = 1.0
"""How long nobody is let in where the kernel lets nobody in."""
_WINDOW_MS_MAX = 60_000


def overlay_address(subnet_file: Path, version: int) -> tuple[Address, int]:
    """Return this host's address in its subnet of the overlay, and the overlay's MTU in bytes.

    It is the tunnel device's, the first of the subnet, or where there is none a bridge's, the second one. Raises
    `FlannelError` where there is neither.
    """
    env = subnet_env.require(subnet_file)
    subnet = env.subnet.of(version)
    if subnet is None:
        raise FlannelError(f"{subnet_file} has no IPv{version} subnet")
    for address in (subnet[0], subnet[1]):
        if _is_here(address):
            return address, env.mtu
    raise FlannelError(f"neither {subnet[0]} nor {subnet[1]} is an address of this host: is the agent up?")


def _is_here(address: Address) -> bool:
    with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def plain(text: str) -> Address:
    """Return the address that a socket names; an IPv4 one also where the socket is of IPv6 and takes both."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _listen(address: Address, port: int) -> socket.socket:
    """Return a socket that takes connections. Raises `FlannelError`."""
    try:
        return socket.create_server(
            (str(address), port), family=_family(address), backlog=4, dualstack_ipv6=str(address) == "::"
        )
    except (OSError, ValueError) as error:  # the latter: a kernel whose sockets of IPv6 take no IPv4
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise FlannelError(f"cannot listen at {address}, port {port}: {reason}") from None


@dataclass(slots=True)
class _Attended:
    """A client, what runs for it, and what says how many datagrams have come, if that runs."""

    client: Conversation
    running: ExitStack = field(default_factory=ExitStack)
    counted: Callable[[], Counted] | None = None

    def stop(self) -> None:
        """End what runs."""
        self.counted = None
        self.running.close()


class Server:
    """Listens at an address and port until it is interrupted; with port 0 at a free one."""

    def __init__(self, address: Address, port: int, subnet_file: Path, machine: str) -> None:
        """Begin to listen. Raises `FlannelError`."""
        self._subnet_file, self._machine = subnet_file, machine
        self._listener = _listen(address, port)
        self._address, self._port = address, self._listener.getsockname()[1]
        self._refused = SaidOnce()

    def serve(self) -> None:
        """Serve one client after the other, for ever."""
        with self._listener:
            host = "ADDRESS" if self._address.is_unspecified else str(self._address)
            option = "" if self._port == PORT else f" --port {self._port}"
            _LOGGER.info(
                "serving at %s, port %d (and iperf3's, %d); Ctrl-C ends it. On the other host: "
                "sudo flannel-udp bench run --to %s%s",
                *(self._address, self._port, IPERF3_PORT, host, option),
            )
            while True:
                if client := self._accept():
                    with client.sock:
                        self._attend(_Attended(client))

    def _accept(self) -> Conversation | None:
        """Return who comes next; ``None`` where the kernel does not let them in, which is said once."""
        try:
            sock, peer = self._listener.accept()
        except OSError as error:  # EMFILE, ENFILE, ENOBUFS: they stay in the queue; ECONNABORTED: they have gone
            if self._refused.failed(error.errno):
                _LOGGER.error("nobody is let in for now: %s", error.strerror)
            time.sleep(_REFUSED_S)
            return None
        self._refused.worked()
        return Conversation(sock, str(plain(peer[0])))

    def _attend(self, attended: _Attended) -> None:
        """Do what one client wants until it hangs up; whatever it says or does ends no more than its connection."""
        client = attended.client
        client.sock.settimeout(_FIRST_S)  # of sending: a client that reads nothing holds nobody up
        _LOGGER.info("%s: measures", client.who)
        try:
            with attended.running:
                self._answer(attended, self._next(client, _FIRST_S))
                while True:
                    self._answer(attended, self._next(client, _IDLE_S))
        except FlannelError as error:
            _LOGGER.info("%s", error)

    def _answer(self, attended: _Attended, wish: Mapping[str, Any]) -> None:
        try:
            attended.client.say(self._done(attended, wish))
        except (FlannelError, OSError) as error:  # the latter: no descriptor or no process is left
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            attended.client.say({"error": said})
            raise FlannelError(said) from None

    def _done(self, attended: _Attended, wish: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is wanted and return the answer. Raises `FlannelError`, or OSError where the kernel refuses."""
        if wish.get("want") == "counted":
            return self._counted(attended)
        attended.stop()  # only one thing at a time
        underlay = plain(attended.client.sock.getsockname()[0])
        match wish.get("want"):
            case "hello":
                if wish.get("format") != FORMAT:
                    raise FlannelError("another version of flannel-udp: take the same one on both hosts")
                overlay, mtu = overlay_address(self._subnet_file, underlay.version)
                told = {"overlay": str(overlay), "mtu": mtu, "machine": self._machine}
                return {"format": FORMAT, **told, "lacks": lacking_to_count()}
            case "iperf3" | "reach" as want:
                address = self._asked(wish, underlay)
                attended.running.enter_context(self._listening(want, address))
                return {"listening": True}
            case "datagrams":
                window_ms = wish.get("window_ms")
                if type(window_ms) is not int or not 0 <= window_ms <= _WINDOW_MS_MAX:
                    raise FlannelError(f"no window of 0 to {_WINDOW_MS_MAX} ms")
                receiver = datagram_receiver(Runner(), self._asked(wish, underlay), window_ms)
                attended.counted = attended.running.enter_context(receiver)
                return {"listening": True}
            case "stop":
                return {"stopped": True}
        raise FlannelError("no such wish")

    @staticmethod
    def _counted(attended: _Attended) -> dict[str, Any]:
        if attended.counted is None:
            raise FlannelError("no datagrams are counted")
        counted = attended.counted()
        return {"packets": counted.packets, "seconds": counted.seconds}

    def _asked(self, wish: Mapping[str, Any], underlay: Address) -> Address:
        """Return which of our own two addresses a wish is about. Raises `FlannelError`."""
        overlay, _ = overlay_address(self._subnet_file, underlay.version)
        address = {"overlay": overlay, "underlay": underlay}.get(str(wish.get("at")))
        if address is None:
            raise FlannelError("neither at the overlay nor at the underlay")
        return address

    @staticmethod
    def _listening(want: str, address: Address) -> AbstractContextManager[object]:
        # "reach": the kernel takes the connections.
        return iperf3_server(Runner(), address) if want == "iperf3" else _listen(address, IPERF3_PORT)

    def _next(self, client: Conversation, timeout_s: float) -> dict[str, Any]:
        """Return what the client says next; whoever else comes meanwhile is told to come later."""
        deadline_s = time.monotonic() + timeout_s
        while (message := client.read()) is None:
            left_s = deadline_s - time.monotonic()
            ready = select([self._listener, client.sock], [], [], left_s)[0] if left_s > 0 else []
            if not ready:
                raise FlannelError(f"{client.who} has said nothing for {timeout_s:g} s")
            if client.sock in ready:
                client.receive()  # first: if it has hung up, whoever else is there has their turn
            else:
                self._refuse(client.who)
        return message

    def _refuse(self, who: str) -> None:
        other = self._accept()
        if other is None:
            return
        with other.sock as sock:
            _LOGGER.info("%s: told to come later", other.who)
            sock.settimeout(_REFUSAL_S)
            with suppress(FlannelError, OSError):
                other.say({"error": f"{who} measures just now: try again later"})
                sock.shutdown(socket.SHUT_WR)
                other.receive()  # its wish: what is closed with that unread resets the connection, and our word is lost
