"""Addresses and ports, as the kernel program writes them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

V4_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of an IPv4 address in 16 (RFC 4291 2.5.5.2)."""


class Endpoint(NamedTuple):
    """A 16-byte address and a port."""

    address: bytes
    port: int


@lru_cache(maxsize=65536)
def address_to_text(address: bytes) -> str:
    """The usual spelling of a 16-byte address: dotted for IPv4, RFC 5952 for IPv6."""
    if address.startswith(V4_MAPPED):
        return str(IPv4Address(address[12:]))
    return str(IPv6Address(address))


LOOPBACK_V6 = bytes(15) + b"\x01"
LOOPBACK_V4 = V4_MAPPED + b"\x7f"
GROUP_V6, CLASS_D, BROADCAST = 0xFF, 0xE, b"\xff" * 4
"""First byte of an IPv6 group, first four bits of an IPv4 group, and the address of everybody."""


def is_group(address: bytes) -> bool:
    """Whether it is a multicast or broadcast address (RFC 5771, RFC 919, RFC 4291 2.7): no host's own."""
    if address.startswith(V4_MAPPED):
        return address[12] >> 4 == CLASS_D or address[12:] == BROADCAST
    return address[0] == GROUP_V6


def endpoint_to_text(address: bytes, port: int) -> str:
    """`192.0.2.1:53` or `[2001:db8::1]:53`."""
    text = address_to_text(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def is_loopback(address: bytes) -> bool:
    """Whether every namespace has its own host of this address."""
    return address.startswith(LOOPBACK_V4) or address == LOOPBACK_V6
