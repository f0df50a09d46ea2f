"""A program that netfilter asks about packets, and that refuses all of them: the user-space half of an NFQUEUE rule."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab import namespaces
from agent.lab.faults import UnsupportedFaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab.pods import Pod

QUEUE = 77
NETLINK_NETFILTER = 12
NFNL_SUBSYS_QUEUE = 3 << 8
PACKET, VERDICT, CONFIG = 0, 1, 2
"""enum nfqnl_msg_types."""
CFG_CMD, CFG_PARAMS, VERDICT_HDR = 1, 2, 2
"""Attributes: of CONFIG, of CONFIG, of VERDICT."""
BIND = struct.pack("!BBH", 1, 0, 0)
COPY_META = struct.pack("!IB", 0, 1)
NF_DROP = 0
REQUEST_AND_ACKNOWLEDGE = 5
HEADER = struct.Struct("=IHHII")
GENERIC_BYTES = 4
"""Of struct nfgenmsg, behind the header."""
ATTRIBUTE = struct.Struct("=HH")
PACKET_ID_AT = HEADER.size + GENERIC_BYTES + ATTRIBUTE.size
"""The packet's header is the first attribute, and its number the first thing in it."""
MAX_BYTES = 65535
POLL_SECONDS = 0.05


@contextmanager
def refusing_reader(pod: Pod) -> Iterator[None]:
    """Refuse every packet that a rule of this namespace puts into QUEUE.

    Raises:
        UnsupportedFaultError: The kernel has no packet queues.
    """
    with _bound_socket(pod) as sock:
        stopped = threading.Event()
        thread = threading.Thread(target=_refuse, args=(sock, stopped))
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def _bound_socket(pod: Pod) -> socket.socket:
    def create() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)

    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(namespaces.call_inside(pod.name, create))
            sock.settimeout(POLL_SECONDS)
            sock.send(_message(CONFIG, (CFG_CMD, BIND), (CFG_PARAMS, COPY_META)))
            (refused,) = struct.unpack_from("=i", sock.recv(MAX_BYTES), HEADER.size)
        except OSError as error:
            raise UnsupportedFaultError(f"no packet queues: {error.strerror}") from error
        if refused:
            raise UnsupportedFaultError(f"no packet queues: {os.strerror(-refused)}")
        stack.pop_all()
        return sock


def _refuse(sock: socket.socket, stopped: threading.Event) -> None:
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            message = sock.recv(MAX_BYTES)
            if HEADER.unpack_from(message)[1] == NFNL_SUBSYS_QUEUE | PACKET:
                number = message[PACKET_ID_AT:][:4]
                sock.send(_message(VERDICT, (VERDICT_HDR, NF_DROP.to_bytes(4) + number)))


def _message(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("!BBH", 0, 0, QUEUE) + b"".join(_attribute(*one) for one in attributes)
    flags = REQUEST_AND_ACKNOWLEDGE if kind == CONFIG else 1
    return HEADER.pack(HEADER.size + len(body), NFNL_SUBSYS_QUEUE | kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + padding
