"""Filters of raw ICMP sockets: what is not wanted is dropped by the kernel and wakes nobody (linux/filter.h).

A raw socket's filter sees an IPv4 packet from its IP header on (raw(7)), an IPv6 one from its ICMP header on.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
"""Types of ICMP messages (RFC 792)."""

ECHO_V6, ECHO_REPLY_V6 = 128, 129
UNREACHABLE_V6, TOO_BIG_V6, TIME_EXCEEDED_V6, PARAMETER_PROBLEM_V6 = 1, 2, 3, 4
"""Types of ICMPv6 messages (RFC 4443)."""
ICMPV6_BYTES, IPV6_BYTES = 8, 40
"""Headers: an error's own, and of the packet that it quotes."""

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h
_ICMPV6_FILTER, _ICMPV6_TYPES = 1, 256  # linux/icmpv6.h

# linux/bpf_common.h
_LOAD_HEADER_LEN = 0xB1  # index = 4 * (packet[offset] & 0xf)
_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x50, 0x48, 0x40  # accumulator = packet[index + offset]
_AND, _SHIFT_LEFT, _ADD_INDEX, _TO_INDEX = 0x54, 0x64, 0x0C, 0x07
_LOAD_BYTE_AT, _LOAD_HALF_AT, _LOAD_WORD_AT = 0x30, 0x28, 0x20  # accumulator = packet[offset]
_JUMP_EQUAL, _RETURN = 0x15, 0x06

_QUOTED = 8  # of an ICMP error, behind its own header: the packet that it is about
_PROTOCOL_AT, _SOURCE_AT, _IDENTIFIER_AT, _BODY_AT, _UDP_DESTINATION_AT = 9, 12, 4, 8, 2
_NEXT_HEADER_AT, _SOURCE_V6_AT = 6, 8  # of an IPv6 header
_WHOLE = 0xFFFF
_SECRET_BYTES = 4  # a word is what a filter compares


class _Instruction(NamedTuple):
    """A struct sock_filter."""

    code: int
    operand: int = 0
    skip_if_so: int = 0
    skip_if_not: int = 0


_FIND_ICMP = (_Instruction(_LOAD_HEADER_LEN),)
_FIND_QUOTED_PAYLOAD = (
    _Instruction(_LOAD_BYTE, _QUOTED),
    _Instruction(_AND, 0xF),
    _Instruction(_SHIFT_LEFT, 2),
    _Instruction(_ADD_INDEX),
    _Instruction(_TO_INDEX),
)


def accept_types(raw: socket.socket, types: Iterable[int]) -> None:
    """Let the socket, of IPPROTO_ICMP, have ICMP messages of these types only."""
    refused = ~sum(1 << kind for kind in types) & 0xFFFFFFFF
    raw.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", refused))


def accept_types_v6(raw: socket.socket, types: Iterable[int]) -> None:
    """Let the socket, of IPPROTO_ICMPV6, have ICMPv6 messages of these types only."""
    refused = (1 << _ICMPV6_TYPES) - 1 & ~sum(1 << kind for kind in types)
    words = ((refused >> at) & 0xFFFFFFFF for at in range(0, _ICMPV6_TYPES, 32))
    raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))


def accept_errors_about_udp_v6(raw: socket.socket, source: IPv6Address, port: int) -> None:
    """Of ICMPv6 errors, let the socket have those about UDP datagrams from this address and to this port only."""
    words = struct.unpack("!4I", source.packed)
    _attach(
        raw,
        *_require(_LOAD_BYTE_AT, ICMPV6_BYTES + _NEXT_HEADER_AT, socket.IPPROTO_UDP),
        *(
            each
            for number, word in enumerate(words)
            for each in _require(_LOAD_WORD_AT, ICMPV6_BYTES + _SOURCE_V6_AT + 4 * number, word)
        ),
        *_require(_LOAD_HALF_AT, ICMPV6_BYTES + IPV6_BYTES + _UDP_DESTINATION_AT, port),
        _Instruction(_RETURN, _WHOLE),
    )


def accept_echoes_v6(raw: socket.socket, identifier: int, secret: bytes) -> None:
    """Likewise of ICMPv6 echo replies and errors, see `accept_echoes`."""
    quoted = ICMPV6_BYTES + IPV6_BYTES
    reply = (*_require_echo(_LOAD_HALF_AT, _LOAD_WORD_AT, 0, identifier, secret), _Instruction(_RETURN, _WHOLE))
    _attach(
        raw,
        _Instruction(_LOAD_BYTE_AT),
        _Instruction(_JUMP_EQUAL, ECHO_REPLY_V6, skip_if_not=len(reply)),
        *reply,
        *_require(_LOAD_BYTE_AT, ICMPV6_BYTES + _NEXT_HEADER_AT, socket.IPPROTO_ICMPV6),
        *_require_echo(_LOAD_HALF_AT, _LOAD_WORD_AT, quoted, identifier, secret),
        _Instruction(_RETURN, _WHOLE),
    )


def accept_errors_about_udp(raw: socket.socket, source: IPv4Address, port: int) -> None:
    """Of ICMP errors, let the socket have those about UDP datagrams from this address and to this port only."""
    _attach(
        raw,
        *_FIND_ICMP,
        *_require(_LOAD_BYTE, _QUOTED + _PROTOCOL_AT, socket.IPPROTO_UDP),
        *_require(_LOAD_WORD, _QUOTED + _SOURCE_AT, int(source)),
        *_FIND_QUOTED_PAYLOAD,
        *_require(_LOAD_HALF, _QUOTED + _UDP_DESTINATION_AT, port),
        _Instruction(_RETURN, _WHOLE),
    )


def accept_errors_about_ipip(raw: socket.socket, source: IPv4Address) -> None:
    """Of ICMP errors, let the socket have those about packets of IP in IP from this address only."""
    _attach(
        raw,
        *_FIND_ICMP,
        *_require(_LOAD_BYTE, _QUOTED + _PROTOCOL_AT, socket.IPPROTO_IPIP),
        *_require(_LOAD_WORD, _QUOTED + _SOURCE_AT, int(source)),
        _Instruction(_RETURN, _WHOLE),
    )


def accept_echoes(raw: socket.socket, identifier: int, secret: bytes) -> None:
    """Of ICMP echo replies and errors, let the socket have those that answer echoes of this identifier only.

    Behind their ICMP header these begin with the secret, of which the first four bytes count: an identifier is known to
    anybody, and whoever sends us replies of his own would keep a processor busy.
    """
    reply = (*_require_echo(_LOAD_HALF, _LOAD_WORD, 0, identifier, secret), _Instruction(_RETURN, _WHOLE))
    _attach(
        raw,
        *_FIND_ICMP,
        _Instruction(_LOAD_BYTE),
        _Instruction(_JUMP_EQUAL, ECHO_REPLY, skip_if_not=len(reply)),
        *reply,
        *_require(_LOAD_BYTE, _QUOTED + _PROTOCOL_AT, socket.IPPROTO_ICMP),
        *_FIND_QUOTED_PAYLOAD,
        *_require_echo(_LOAD_HALF, _LOAD_WORD, _QUOTED, identifier, secret),
        _Instruction(_RETURN, _WHOLE),
    )


def _require(load: int, offset: int, wanted: int) -> tuple[_Instruction, ...]:
    """Refuse the packet unless what is there is `wanted`."""
    return _Instruction(load, offset), _Instruction(_JUMP_EQUAL, wanted, skip_if_so=1), _Instruction(_RETURN, 0)


def _require_echo(
    load_half: int, load_word: int, offset: int, identifier: int, secret: bytes
) -> tuple[_Instruction, ...]:
    """Refuse the packet unless the ICMP header there, and what is behind it, are those of an echo of ours."""
    return (
        *_require(load_half, offset + _IDENTIFIER_AT, identifier),
        *_require(load_word, offset + _BODY_AT, int.from_bytes(secret[:_SECRET_BYTES])),
    )


def _attach(raw: socket.socket, *program: _Instruction) -> None:
    code = b"".join(
        struct.pack("=HBBI", each.code, each.skip_if_so, each.skip_if_not, each.operand) for each in program
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(instructions))  # struct sock_fprog
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
