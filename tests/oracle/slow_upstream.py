"""An upstream that takes its time, a different one for each reply: then many queries wait at once, and overtake."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import sys
from collections.abc import Iterator
from subprocess import PIPE

import dns.message

from agent.lab import LabError, Pod
from agent.lab.processes import EXIT_SECONDS, end
from tests.lab.scripted import READY, Datagrams, Script

SECONDS = (0.001, 0.008)


@contextlib.contextmanager
def slow_upstream(pod: Pod) -> Iterator[None]:
    """Run it in a pod while the block lasts."""
    process = pod.popen([sys.executable, "-m", __name__, pod.address], stdout=PIPE, stderr=None)
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], EXIT_SECONDS)
        if not readable or process.stdout.readline() != READY:
            raise LabError(f"the slow upstream in {pod.name} does not start")
        yield
    finally:
        end(process)


def pause() -> float:
    return random.uniform(*SECONDS)  # noqa: S311  no secret


class Late(Datagrams):
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        asyncio.get_running_loop().call_later(pause(), super().datagram_received, data, addr)


async def serve_connection(script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            query = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))
            await asyncio.sleep(pause())
            reply = script.reply(query, tcp=True) or b""
            writer.write(len(reply).to_bytes(2) + reply)
            await writer.drain()
    writer.close()


async def main(address: str) -> None:
    script = Script()
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: Late(script), local_addr=(address, 53))
    await asyncio.start_server(lambda reader, writer: serve_connection(script, reader, writer), address, 53)
    sys.stdout.write(READY)
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
