"""A kernel without policy routing, as far as rtnetlink shows it: the real one, but for questions about rules."""

from __future__ import annotations

import socket
import struct

from flannel_udp.host.rtnetlink import Rtnetlink

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_GETRULE = 34


class _Refusing:
    """A netlink socket through which rules are refused."""

    def __init__(self, netlink: socket.socket, kind: int, code: int) -> None:
        self._netlink, self._kind, self._code = netlink, kind, code
        self._answer = b""

    def setsockopt(self, *option: int) -> None:
        self._netlink.setsockopt(*option)

    def send(self, message: bytes) -> int:
        _, kind, _, sequence, _ = _HEADER.unpack_from(message)
        if kind != _RTM_GETRULE:
            return self._netlink.send(message)
        body = struct.pack("=i", -self._code)
        if self._kind == _NLMSG_ERROR:
            body += message[: _HEADER.size]
        self._answer = _HEADER.pack(_HEADER.size + len(body), self._kind, 0, sequence, 0) + body
        return len(message)

    def recv_into(self, datagram: bytearray) -> int:
        if not self._answer:
            return self._netlink.recv_into(datagram)
        answer, self._answer = self._answer, b""
        datagram[: len(answer)] = answer
        return len(answer)


def without_rules(netlink: socket.socket, code: int, *, at_the_end: bool) -> Rtnetlink:
    """Return a channel whose dump of rules is refused with this errno: by an error, or at the end of an empty dump.

    No handler at all is the former (linux, rtnetlink_rcv_msg: EOPNOTSUPP), none of a family the latter
    (fib_nl_dumprule: EAFNOSUPPORT).
    """
    refusing = _Refusing(netlink, _NLMSG_DONE if at_the_end else _NLMSG_ERROR, code)
    return Rtnetlink(refusing)  # type: ignore[arg-type]  # it has of a socket what is asked of it
