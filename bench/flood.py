"""A flood of small UDP packets, and its counting receiver; each is a program that runs in a pod.

    python flood.py send ADDRESS PORT SECONDS      prints how many packets the kernel took
    python flood.py receive ADDRESS PORT SECONDS   prints how many came, and the seconds from the first to the last

The sender hands over packets in batches by sendmmsg(2), so that it is the kernel's work that is measured.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time

BATCH = 64
PAYLOAD = bytes(18)
"""With its headers the smallest Ethernet frame."""
RECEIVE_BUFFER_BYTES = 4 << 20
SILENCE_SECONDS = 0.5
START_SECONDS = 10.0


class IoVec(ctypes.Structure):
    """The kernel's struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class MsgHdr(ctypes.Structure):
    """The kernel's struct msghdr."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(IoVec)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class MMsgHdr(ctypes.Structure):
    """The kernel's struct mmsghdr."""

    _fields_ = [("header", MsgHdr), ("length", ctypes.c_uint)]


def send(address: str, port: int, seconds: float) -> None:
    """Send for so long, as fast as it goes."""
    libc = ctypes.CDLL(None, use_errno=True)
    payload = ctypes.create_string_buffer(PAYLOAD, len(PAYLOAD))
    vector = IoVec(ctypes.addressof(payload), len(PAYLOAD))
    header = MsgHdr(vectors=ctypes.pointer(vector), vector_count=1)
    batch = (MMsgHdr * BATCH)(*(MMsgHdr(header) for _ in range(BATCH)))
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done = libc.sendmmsg(sock.fileno(), batch, BATCH, 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += done
    print(sent)


def receive(address: str, port: int, seconds: float) -> None:
    """Count until the flood is over."""
    buffer = bytearray(64)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((address, port))
        print("ready", flush=True)
        sock.settimeout(START_SECONDS)
        sock.recv_into(buffer)
        begun = last = time.monotonic()
        sock.settimeout(SILENCE_SECONDS)
        received = 1
        try:
            while last < begun + 2 * seconds:
                sock.recv_into(buffer)
                received += 1
                last = time.monotonic()
        except TimeoutError:
            pass
    print(received, last - begun)


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
