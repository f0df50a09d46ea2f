"""What lookups by search lists cost: programs in a pod resolve names as in Kubernetes, and the agent watches.

`python -m bench.searches [--command OTHER/dnstrail]`. Nothing else may run meanwhile: the agent sees the whole machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from agent.lab import Lab
from bench.process import OWN_COMMAND, running

SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local"
NAMES = {
    "a Service by its name": ("redis-master",),
    "and by name and namespace": ("redis-master", "redis-master.default"),
    "and a name that is forwarded": ("redis-master", "redis-master.default", "www.upstream.test"),
}
RESOLVE = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for name in sys.argv[2:]:
        socket.getaddrinfo(name, 80)
        time.sleep(0.002)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", type=Path, default=OWN_COMMAND, help="of this checkout, or of another one")
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    print("| names | lookups/s | CPU of the agent, share of a core | a lookup |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory, Lab("iptables") as lab:
        for words, names in NAMES.items():
            argv = [sys.executable, "-c", RESOLVE, str(given.seconds), *names]
            command = lab.clients[0].resolver_argv(argv, search=SEARCH, options="ndots:5 timeout:2")
            with running(lab, Path(directory), given.command) as agent:
                before = agent.cpu_seconds()
                lab.clients[0].run(command, timeout=3 * given.seconds)
                agent.settle()
                used = agent.cpu_seconds() - before
                lookups = agent.stop().sessions
            share, each_us = used / given.seconds, used / lookups * 1e6
            print(f"| {words} | {lookups / given.seconds:.0f} | {share:.1%} | {each_us:.0f} µs |", flush=True)


if __name__ == "__main__":
    main()
