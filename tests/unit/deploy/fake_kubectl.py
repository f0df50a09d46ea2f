#!/usr/bin/env python3
"""A kubectl for what one node cannot show: several nodes, missing rights, pods that go away, a cluster that is away.

What there is and what happens is in the JSON file that FAKE_CLUSTER names. `dnstrail explain` and `top -` of a
container are the real ones. Each call is noted in that file's neighbour `calls`, and what stays in `running`.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

WORLD = Path(os.environ["FAKE_CLUSTER"])
STAY_SECONDS = 60


def main():
    arguments = sys.argv[1:]
    with WORLD.with_name("calls").open("a") as calls:
        calls.write(f"{json.dumps(arguments)}\n")
    cluster = json.loads(WORLD.read_text())
    flags = dict(one[2:].partition("=")[::2] for one in before_dashes(arguments) if one.startswith("--"))
    words = [one for one in before_dashes(arguments) if not one.startswith("--")]
    fail(cluster.get("fails", {}).get(words[0]))
    DO[words[0]](cluster, flags, words[1:], arguments)


def before_dashes(arguments):
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def fail(words, code=1):
    if words:
        print(words, file=sys.stderr)
        sys.exit(code)


def get(cluster, flags, _words, _arguments):
    everywhere = "all-namespaces" in flags
    if everywhere:
        fail(cluster.get("fails", {}).get("get everywhere"))
    wanted = flags.get("namespace", "default")
    for pod in cluster["pods"]:
        labelled = "selector" not in flags or pod["agent"]
        named = flags.get("field-selector", f"metadata.name={pod['name']}") == f"metadata.name={pod['name']}"
        if labelled and named and (everywhere or pod["namespace"] == wanted):
            print("\t".join(pod[key] for key in ("namespace", "name", "node", "phase", "ending", "port")))


def logs(cluster, _flags, words, _arguments):
    one = cluster["logs"].get(words[0])
    fail("" if one is not None else f'Error from server (NotFound): pods "{words[0]}" not found')
    sys.stdout.write(one)


def run(cluster, _flags, words, arguments):
    command = arguments[arguments.index("--") + 1 :]
    if command[1] == "explain" or command[-1] == "-":
        os.execv(cluster["python"], [cluster["python"], "-m", "agent", *command[1:]])  # noqa: S606  as intended
    one = cluster["exec"][words[0]]
    sys.stdout.write(one.get("out", ""))
    sys.stderr.write(one.get("err", ""))
    sys.stdout.flush()
    stay(one.get("stay"))
    fail(f"command terminated with exit code {one['code']}" if one.get("code") else "", one.get("code"))


def stay(needed):
    if needed:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with WORLD.with_name("running").open("a") as running:
            running.write(f"{os.getpid()}\n")
        time.sleep(STAY_SECONDS)


def port_forward(cluster, _flags, _words, _arguments):
    class Agent(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/page/state" and cluster["page"] else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        print(f"Forwarding from 127.0.0.1:{server.server_port} -> 9353", flush=True)
        server.handle_request()
        stay(needed=True)


DO = {"get": get, "logs": logs, "exec": run, "port-forward": port_forward}
main()
