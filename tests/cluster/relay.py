"""A way for a pod of the lab to the control plane, which listens on this machine's own loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from agent.lab import namespaces

LOOPBACK = "127.0.0.1"
CHUNK = 1 << 16
END_SECONDS = 5.0


@contextmanager
def relay(netns: str, port: int) -> Iterator[None]:
    """Let a network namespace reach 127.0.0.1:port of this one at the very same address, while the block lasts.

    The listening socket is opened inside and stays there; each of its connections is forwarded out here. No link or
    route is added, so faults in the lab's network do not cut the pod off, and one kubeconfig is good on both sides.
    """
    with namespaces.call_inside(netns, lambda: socket.create_server((LOOPBACK, port))) as listening:
        listening.setblocking(False)
        loop = asyncio.new_event_loop()
        serving = loop.create_task(_serve(listening, port))
        thread = Thread(target=_run, args=(loop, serving), name=f"relay-{netns}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join(END_SECONDS)


def _run(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    with contextlib.closing(loop), contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(serving)


async def _serve(listening: socket.socket, port: int) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as connections:
        while True:
            near, _ = await loop.sock_accept(listening)
            connections.create_task(_forward(near, port))


async def _forward(near: socket.socket, port: int) -> None:
    """Copy both ways until either end closes or fails; then neither remains open."""
    with near, socket.socket() as far, contextlib.suppress(OSError):
        far.setblocking(False)
        await asyncio.get_running_loop().sock_connect(far, (LOOPBACK, port))
        copies = [asyncio.create_task(_copy(near, far)), asyncio.create_task(_copy(far, near))]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        await loop.sock_sendall(sink, data)
