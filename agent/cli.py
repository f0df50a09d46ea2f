"""The command line: options in, exit code out. 0 fine, 1 problems found or capture impossible, 2 usage."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.enrich.kube.errors import NotConfiguredError
from agent.kernel.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.export.filters import Filter
    from agent.export.printer import LineOptions
    from agent.serve import Address
    from agent.session.model import Settings

ENVIRONMENT_PREFIX = "DNSTRAIL_"
STATUSES = ("Succeeded", "Failed", "SampleLoss")
SIZE_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MIN_RING_BYTES = 4096
MIN_FILE_BYTES = 256 << 10
MIN_LINES_BYTES = 128 << 10
"""The part of it that is for incidents has room for one of their lines."""
MAX_PORTS = 16
USAGE = 2
"""Exit code for options that cannot be."""
UNLIMITED = "unlimited"
PAGES = ("none", "redacted", "names")
TRACE_SOCKET = "/run/dnstrail/trace.sock"
LOGS = ("all", "problems", "none")
SHORT = {"output": "-o", "namespace": "-n"}
"""Options that have a letter."""
REDACTION_KEY_BYTES = 16


class PageError(Exception):
    """The options do not go together; the text says why and what to do."""


def ports(text: str) -> tuple[int, ...]:
    """`53,5353` as numbers."""
    values = tuple(int(part) for part in text.split(","))
    if not all(0 < value < 1 << 16 for value in values) or len(values) > MAX_PORTS:
        raise argparse.ArgumentTypeError(f"up to {MAX_PORTS} port numbers from 1 to 65535, separated by commas")
    return values


def byte_count(text: str) -> int:
    """`20M` as bytes."""
    unit = SIZE_UNITS.get(text[-1:].lower(), 1)
    return int(text[:-1] if unit > 1 else text) * unit


def ring_size(text: str) -> int:
    """`16M` as bytes: a power of two, at least one page."""
    value = byte_count(text)
    if value < MIN_RING_BYTES or value & (value - 1):
        raise argparse.ArgumentTypeError("a power of two of at least 4096, such as 4096, 512K or 16M")
    return value


def file_size(text: str) -> int:
    """`20M` as bytes: room for some of the largest packets."""
    value = byte_count(text)
    if value < MIN_FILE_BYTES:
        raise argparse.ArgumentTypeError("at least 256K bytes, such as 256K, 20M or 1G")
    return value


def count(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number above 0")
    return value


def rate(text: str) -> int | None:
    """A whole number above zero; None for `unlimited`."""
    return None if text == UNLIMITED else count(text)


def byte_limit(text: str) -> int | None:
    """`1M` as bytes: room for some lines; None for `unlimited`."""
    if text == UNLIMITED:
        return None
    value = byte_count(text)
    if value < MIN_LINES_BYTES:
        raise argparse.ArgumentTypeError("at least 128K bytes, such as 128K or 1M, or unlimited")
    return value


def positive(text: str) -> float:
    """A number of seconds above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("a number of seconds above 0")
    return value


def record_type(text: str) -> str:
    """A record type that exists."""
    from agent.wire.render import rdtype_from_text, rdtype_to_text  # noqa: PLC0415  dnspython is slow to import

    try:
        return rdtype_to_text(rdtype_from_text(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def metrics_address(text: str) -> Address | None:
    """`:9353`, `127.0.0.1:9353`, `[::1]:9353` or `none`."""
    from agent.serve import address  # noqa: PLC0415  only where it is needed

    try:
        return address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """`100ms`, `1.5s` or `0.1` as seconds, above zero."""
    for unit, part in (("ms", 0.001), ("s", 1.0)):
        if text.endswith(unit):
            return positive(text.removesuffix(unit)) * part
    return positive(text)


def socket_path(text: str) -> str:
    """A path that a socket can have; empty for `none` and for nothing."""
    from agent.readers.place import MAX_PATH_BYTES, NOWHERE  # noqa: PLC0415  only where it is needed

    if len(os.fsencode(text)) > MAX_PATH_BYTES or "\0" in text:
        raise argparse.ArgumentTypeError(f"a path of up to {MAX_PATH_BYTES} bytes, or none")
    return "" if text == NOWHERE else text


def variable_of(option: str) -> str:
    """The variable that means the same as `--option`."""
    return ENVIRONMENT_PREFIX + option.upper().replace("-", "_")


def value_of(variable: str) -> str | None:
    """What a variable says; None where it is not set, or empty: a template leaves those behind it does not fill."""
    value = os.environ.get(variable, "")
    return value if value.strip() else None


class EnvironmentParser(argparse.ArgumentParser):
    """Every option can also be given as DNSTRAIL_OPTION, with the same checks; the command line wins."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  argparse's own
        super().__init__(**settings)
        self._variables: dict[str, tuple[str, ...]] = {}
        self._flags: dict[str, str] = {}

    def add_option(self, name: str, **settings: Any) -> None:  # noqa: ANN401  argparse's own
        """Add `--name`, and its variable to the help."""
        variable = variable_of(name)
        spellings = (SHORT[name], f"--{name}") if name in SHORT else (f"--{name}",)
        self._variables[variable] = spellings
        self.add_argument(*spellings, **(settings | {"help": f"{settings['help']} [{variable}]"}))

    def add_flag(self, name: str, help: str) -> None:  # noqa: A002  argparse's own
        """Add `--name`, which takes no value; its variable is true or false."""
        variable = variable_of(name)
        self._flags[variable] = f"--{name}"
        self.add_argument(f"--{name}", action="store_true", help=f"{help} [{variable}=true]")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Put the variables before the command line, unless that has the option too."""
        given = list(sys.argv[1:] if args is None else args)
        names = {argument.split("=", 1)[0] for argument in given} | {
            argument[:2] for argument in given if not argument.startswith("--")
        }
        defaults = [
            f"{spellings[-1]}={value}"
            for variable, spellings in self._variables.items()
            if (value := value_of(variable)) is not None and not names.intersection(spellings)
        ]
        return super().parse_known_args([*defaults, *self._flags_of_variables(), *given], namespace)

    def _flags_of_variables(self) -> Iterator[str]:
        for variable, flag in self._flags.items():
            value = (value_of(variable) or "false").lower()
            if value not in ("true", "false"):
                self.error(f"{variable} is true or false, not {value!r}")
            if value == "true":
                yield flag


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="dnstrail", description="Watches every DNS message of this node and says where and why a lookup was lost."
    )
    parser.add_argument("--version", action="version", version=f"dnstrail {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=EnvironmentParser)
    add_run(commands.add_parser("run", help="watch this node; print one line for each lookup"))
    add_replay(
        commands.add_parser("replay", help="print the lookups found in capture files (pcap, pcapng, recordings)")
    )
    add_explain(
        commands.add_parser("explain", help="tell what went wrong in session lines: each problem as a short story")
    )
    add_trace(commands.add_parser("trace", help="show the lookups of this node while they happen"))
    add_top(commands.add_parser("top", help="show what goes wrong now: incidents, and who and what has most trouble"))
    add_record(commands.add_parser("record", help="write every captured packet and drop to rotating pcapng files"))
    add_check(
        commands.add_parser(
            "check", help="say what this kernel and these privileges allow; exit 1 if dnstrail cannot capture"
        )
    )
    add_demo(
        commands.add_parser(
            "demo", help="build a small node of network namespaces, break it, and show what dnstrail says"
        )
    )
    return parser


def add_run(parser: EnvironmentParser) -> None:
    """The options of `run`."""
    add_capture(parser)
    add_sessions(parser, log=(*LOGS, "incidents"))
    add_rates(parser)
    parser.add_option(
        "node", default=os.environ.get("NODE_NAME") or socket.gethostname(), help="name of this node, for the lines"
    )
    add_kubernetes(parser)
    add_events(parser, "write incidents as Kubernetes Events, on the pods concerned and on the node")
    add_metrics(parser)
    add_page(parser)
    add_socket(parser, "let `dnstrail trace` and `dnstrail top` read along by this socket, or none")
    add_client_filters(parser)


def add_socket(parser: EnvironmentParser, purpose: str) -> None:
    """Where agent and readers meet."""
    parser.add_option(
        "trace-socket",
        type=socket_path,
        default=TRACE_SOCKET,
        metavar="PATH",
        help=f"{purpose} (default {TRACE_SOCKET})",
    )


def add_rates(parser: EnvironmentParser) -> None:
    """How many lines are printed."""
    parser.add_option(
        "log-rate",
        type=count,
        default=100,
        metavar="LINES",
        help="print at most this many lines a second for lookups that succeeded (default 100)",
    )
    parser.add_option(
        "failure-rate",
        type=rate,
        default=1,
        metavar="LINES",
        help="print at most this many lines a second for failures that are alike (same cause, place, server and "
        "rcode), after the first 20; the others are counted, and the count is printed; or unlimited (default 1)",
    )
    parser.add_option(
        "max-lines",
        type=rate,
        default=100,
        metavar="LINES",
        help="write at most this many lines within any second, whatever they are; parts are reserved for incidents, "
        "for rare and for other failures, and for lookups that succeeded; or unlimited (default 100)",
    )
    parser.add_option(
        "max-bytes",
        type=byte_limit,
        default="1M",
        metavar="BYTES",
        help="write at most so much within any second, likewise; or unlimited (default 1M)",
    )


def add_metrics(parser: EnvironmentParser) -> None:
    """What is counted, and where it is served."""
    parser.add_option(
        "metrics-address",
        type=metrics_address,
        default=":9353",
        metavar="ADDRESS",
        help="serve /metrics, /incidents, /healthz and /readyz on this address, or none (default :9353)",
    )
    parser.add_option(
        "metrics-by", choices=("none", "namespace", "workload"), default="none", help="also count lookups by client"
    )
    parser.add_option(
        "metrics-cap",
        type=count,
        default=200,
        metavar="CLIENTS",
        help="count at most this many clients one by one (default 200)",
    )


def add_page(parser: EnvironmentParser) -> None:
    """Whether people can look."""
    parser.add_option(
        "page",
        choices=PAGES,
        default="none",
        help="serve a page for browsers beside the metrics, on loopback only (kubectl port-forward): with the "
        "names that were looked up (names) or meaningless words for them (redacted) (default none)",
    )


def page_of(arguments: argparse.Namespace) -> str:
    """How names are shown on the page, if there is one.

    Raises:
        PageError: nobody could see it, or it would show what is to be hidden.
    """
    where, page = arguments.metrics_address, str(arguments.page)
    if page == "none":
        return page
    if where is None:
        raise PageError(
            "--page needs a port, and --metrics-address is none: give it an address, such as 127.0.0.1:9353"
        )
    if where.host and not is_reached_by_loopback(where.host):
        raise PageError(
            f"--page is served on loopback, which --metrics-address {where} leaves out: use :{where.port} or "
            f"127.0.0.1:{where.port}"
        )
    if page == "names" and arguments.redact:
        raise PageError("--page names would show the names that --redact hides: use --page redacted")
    return page


def is_reached_by_loopback(host: str) -> bool:
    """Whether a port on this address takes connections to loopback addresses."""
    found = ip_address(host)
    return found.is_loopback or found.is_unspecified


def add_replay(parser: EnvironmentParser) -> None:
    """The options of `replay`."""
    parser.epilog = (
        "Exit code: 0 if all files were read; 1 if a file is damaged, cut off or not a capture file (the lookups "
        "before that point are printed first); 2 if an option is wrong or a file cannot be opened."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="pcap or pcapng file; - reads standard input")
    add_ports(parser)
    add_sessions(parser)
    parser.add_option(
        "log-rate",
        type=count,
        default=None,
        metavar="LINES",
        help="print at most this many lines a second for lookups that succeeded (no limit)",
    )
    parser.add_option("node", default="", help="name of the node, for the lines (default: the name in the recording)")


def add_explain(parser: EnvironmentParser) -> None:
    """The options of `explain`."""
    parser.epilog = (
        "Exit code: 0 if everything was read; 1 if a file is damaged or cut off (what was read before that point is "
        "told); 2 if an option is wrong or a file cannot be opened. Lines that are no session lines are counted on "
        "stderr."
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="file of session lines, plain or compressed by gzip; - reads standard input (default)",
    )
    parser.add_flag("all", help="tell lookups without a problem, too")
    add_filters(parser)
    add_client_filters(parser)
    add_colour(parser)


def add_colour(parser: EnvironmentParser) -> None:
    """Whether text has colours."""
    parser.add_option(
        "color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colors: auto (at a terminal, unless NO_COLOR is set), always or never",
    )


def add_trace(parser: EnvironmentParser) -> None:
    """The options of `trace`."""
    parser.epilog = (
        "It reads from the agent of this node, and captures by itself where none runs. At a terminal ? shows the keys. "
        "Exit code: 0 when it is ended or its reader is gone; 1 if there is nothing to read from, or the agent ends; 2 "
        "if an option is wrong."
    )
    parser.add_option(
        "output",
        choices=("table", "wide", "detail", "json"),
        default="table",
        help="table, wide (with the way of each message), detail (each lookup told whole, hop by hop) or json (session "
        "lines) (default table)",
    )
    add_watching(parser)
    parser.add_option("count", type=count, default=None, metavar="LOOKUPS", help="stop after so many lookups")
    parser.add_option(
        "healthy-rate",
        type=count,
        default=None,
        metavar="LOOKUPS",
        help="lookups that succeeded are shown so often a second at most; the others are counted (default 100 on a "
        "screen without a filter, else 1000, which is the most)",
    )
    parser.add_flag(
        "end-with-stdin",
        "as rows: end when the other end of standard input is closed (whoever started it elsewhere is gone)",
    )


def add_top(parser: EnvironmentParser) -> None:
    """The options of `top`."""
    parser.epilog = (
        "Without a file it reads from the agent of this node, and captures by itself where none runs. Exit code: 0; 1 "
        "if there is nothing to read from, the agent ends, or a file is damaged or cut off; 2 if an option is wrong or "
        "a file cannot be opened."
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="file of session lines, plain or compressed by gzip; - reads standard input (default: what happens now)",
    )
    parser.add_flag("once", help="print it once, after --duration (1 s without)")
    add_watching(parser)


def add_watching(parser: EnvironmentParser) -> None:
    """Options of everything that shows what happens."""
    add_filters(parser)
    add_client_filters(parser)
    parser.add_option(
        "slow",
        type=seconds,
        default=None,
        metavar="TIME",
        help="only lookups that took at least so long or got no reply, such as 100ms or 1.5s",
    )
    parser.add_option("duration", type=positive, default=None, metavar="SECONDS", help="stop after this time")
    add_socket(parser, "where the agent listens, or none to capture without it")
    add_colour(parser)


def add_record(parser: EnvironmentParser) -> None:
    """The options of `record`."""
    add_capture(parser)
    parser.add_option("write", required=True, metavar="FILE", help="FILE.pcapng writes FILE-00001.pcapng and so on")
    parser.add_option("max-size", type=file_size, default="20M", metavar="BYTES", help="size of one file (default 20M)")
    parser.add_option(
        "max-files",
        type=count,
        default=200,
        metavar="FILES",
        help="keep only this many files, the newest ones (default 200)",
    )
    parser.add_option(
        "node", default=os.environ.get("NODE_NAME") or socket.gethostname(), help="name of this node, for the lines"
    )


def add_kubernetes(parser: EnvironmentParser) -> None:
    """Whether there is a cluster, and how to get at it."""
    parser.add_option(
        "kubernetes",
        default="auto",
        metavar="SOURCE",
        help="where to read the names of pods and Services: auto (in a pod, its cluster; otherwise nowhere), "
        "in-cluster, off, or the path of a kubeconfig file",
    )


def add_events(parser: EnvironmentParser, purpose: str) -> None:
    """Whether anything is written into the cluster."""
    parser.add_flag("events", help=f"{purpose} (needs a right of its own: docs/security.md)")


def add_check(parser: EnvironmentParser) -> None:
    """The options of `check`."""
    add_kubernetes(parser)
    add_events(parser, "say whether Kubernetes Events may be written")


def add_ports(parser: EnvironmentParser) -> None:
    """What counts as DNS."""
    parser.add_option("ports", type=ports, default="53", help="UDP and TCP ports of DNS servers (default %(default)s)")


def add_capture(parser: EnvironmentParser) -> None:
    """Options of everything that captures live."""
    add_ports(parser)
    parser.add_option("duration", type=positive, default=None, metavar="SECONDS", help="stop after this time")
    parser.add_option(
        "ring-size", type=ring_size, default="16M", metavar="BYTES", help="size of the ring buffer (default 16M)"
    )


def add_sessions(parser: EnvironmentParser, *, log: tuple[str, ...] = LOGS) -> None:
    """Options of everything that joins sessions and prints them."""
    parser.add_option("output", choices=("json", "table"), default="json", help="format of the lines (default json)")
    parser.add_option("log", choices=log, default="all", help="which lookups get a line (default all)")
    parser.add_flag(
        "redact", help="replace the names that were looked up by meaningless words, and leave out the answers"
    )
    parser.add_option(
        "timeout",
        type=positive,
        default="10",
        metavar="SECONDS",
        help="time after which a query counts as unanswered (default 10)",
    )
    parser.add_option(
        "max-sessions",
        type=count,
        default=65536,
        metavar="SESSIONS",
        help="keep at most this many lookups open at once (default 65536)",
    )
    add_filters(parser)


def add_filters(parser: EnvironmentParser) -> None:
    """Which lookups are printed."""
    parser.add_option(
        "name",
        action="append",
        default=[],
        metavar="PATTERN",
        help="print only lookups of names that match this shell pattern (repeatable)",
    )
    parser.add_option(
        "type",
        action="append",
        type=record_type,
        default=[],
        help="print only lookups of this record type (repeatable)",
    )
    parser.add_option(
        "status", action="append", choices=STATUSES, default=[], help="print only lookups with this status (repeatable)"
    )
    parser.add_option(
        "rcode", action="append", default=[], help="print only lookups with this response code (repeatable)"
    )
    parser.add_option("cause", action="append", default=[], help="print only lookups with this cause (repeatable)")


def add_client_filters(parser: EnvironmentParser) -> None:
    """Whose lookups are printed, where pods are known."""
    parser.add_option(
        "namespace",
        action="append",
        default=[],
        help="print only lookups of clients in this Kubernetes namespace (repeatable)",
    )
    parser.add_option(
        "pod",
        action="append",
        default=[],
        metavar="PATTERN",
        help="print only lookups of pods whose name matches this shell pattern (repeatable)",
    )


def add_demo(parser: EnvironmentParser) -> None:
    """The options of `demo`."""
    parser.add_option(
        "translation",
        choices=("iptables", "nftables"),
        default="nftables",
        help="what translates the Service's address (default nftables)",
    )


def wanted_lookups(arguments: argparse.Namespace) -> Filter:
    """The filters, as far as the command has them."""
    from agent.export.filters import Filter  # noqa: PLC0415  only the command that is asked for is imported

    return Filter(
        names=tuple(arguments.name),
        types=tuple(arguments.type),
        statuses=tuple(arguments.status),
        rcodes=tuple(arguments.rcode),
        causes=tuple(arguments.cause),
        namespaces=tuple(getattr(arguments, "namespace", ())),
        pods=tuple(getattr(arguments, "pod", ())),
        slow_seconds=getattr(arguments, "slow", None),
    )


def line_options(arguments: argparse.Namespace) -> LineOptions:
    """Which sessions are printed, and how."""
    from agent.export.failures import LineRates  # noqa: PLC0415  as above
    from agent.export.printer import LineOptions  # noqa: PLC0415  as above

    wanted = wanted_lookups(arguments)
    key = secrets.token_bytes(REDACTION_KEY_BYTES) if arguments.redact else None
    rates = LineRates(*(getattr(arguments, limit, None) for limit in ("failure_rate", "max_lines", "max_bytes")))
    return LineOptions(arguments.output, arguments.log, arguments.log_rate, arguments.node, wanted, key, rates)


def settings(arguments: argparse.Namespace) -> Settings:
    """Timeouts and bounds of the sessions."""
    from agent.session.model import SECOND_NS, Settings  # noqa: PLC0415  as above

    return Settings(timeout_ns=int(arguments.timeout * SECOND_NS), max_sessions=arguments.max_sessions)


def command_run(arguments: argparse.Namespace) -> int:
    """Translate the options and be the agent."""
    from agent import run  # noqa: PLC0415  as above
    from agent.enrich.kube.access import NO_TOKEN, access_by, has_no_token  # noqa: PLC0415  as above
    from agent.process import log  # noqa: PLC0415  as above
    from agent.serve import ServeError  # noqa: PLC0415  as above

    options = run.Options(
        ports=arguments.ports,
        ring_bytes=arguments.ring_size,
        duration_seconds=arguments.duration,
        settings=settings(arguments),
        lines=line_options(arguments),
        metrics=arguments.metrics_address,
        metrics_by=arguments.metrics_by,
        metrics_cap=arguments.metrics_cap,
        page=page_of(arguments),
        access=access_by(arguments.kubernetes),
        events=arguments.events,
        readers=arguments.trace_socket,
    )
    if options.events and options.access is None:
        log("no Kubernetes Events are written (--events): the Kubernetes API is not asked (--kubernetes)")
    if has_no_token(arguments.kubernetes):
        log(f"{NO_TOKEN}: lines lack names (automountServiceAccountToken)")
    try:
        run.run(options)
    except ServeError as error:
        raise CaptureError(str(error)) from error


def command_replay(arguments: argparse.Namespace) -> int:
    """Translate the options and read the files."""
    from agent import replay  # noqa: PLC0415  as above

    files = tuple(arguments.files)
    return replay.replay(replay.Options(files, arguments.ports, settings(arguments), line_options(arguments)))


def command_explain(arguments: argparse.Namespace) -> int:
    """Translate the options and tell the problems."""
    from agent import explain_command  # noqa: PLC0415  as above
    from agent.capturefile.inputs import STDIN  # noqa: PLC0415  as above

    files = tuple(arguments.files) or (STDIN,)
    wanted = wanted_lookups(arguments)
    return explain_command.explain(explain_command.Options(files, wanted, arguments.all, arguments.color))


def command_trace(arguments: argparse.Namespace) -> int:
    """Translate the options and show lookups."""
    from agent import trace_command  # noqa: PLC0415  as above

    return trace_command.trace(
        trace_command.Options(
            wanted=wanted_lookups(arguments),
            output=arguments.output,
            colour=arguments.color,
            socket=arguments.trace_socket,
            duration_seconds=arguments.duration,
            lookups=arguments.count,
            healthy_a_second=arguments.healthy_rate,
            ends_with_stdin=arguments.end_with_stdin,
        )
    )


def command_top(arguments: argparse.Namespace) -> int:
    """Translate the options and show what goes wrong."""
    from agent import top_command  # noqa: PLC0415  as above

    return top_command.top(
        top_command.Options(
            files=tuple(arguments.files),
            wanted=wanted_lookups(arguments),
            once=arguments.once,
            colour=arguments.color,
            socket=arguments.trace_socket,
            duration_seconds=arguments.duration,
        )
    )


def command_record(arguments: argparse.Namespace) -> int:
    """Translate the options and write the files."""
    from agent import record  # noqa: PLC0415  as above

    options = record.Options(
        write=arguments.write,
        max_bytes=arguments.max_size,
        max_files=arguments.max_files,
        ports=arguments.ports,
        ring_bytes=arguments.ring_size,
        duration_seconds=arguments.duration,
        node=arguments.node,
    )
    return record.record(options)


def command_check(arguments: argparse.Namespace) -> int:
    """Look at this machine."""
    from agent import check  # noqa: PLC0415  as above

    return check.main(arguments.kubernetes, with_events=arguments.events)


def command_demo(arguments: argparse.Namespace) -> int:
    """Show it."""
    from agent import demo  # noqa: PLC0415  as above

    return demo.main(arguments.translation)


COMMANDS = {
    "run": command_run,
    "replay": command_replay,
    "explain": command_explain,
    "trace": command_trace,
    "top": command_top,
    "record": command_record,
    "check": command_check,
    "demo": command_demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `dnstrail`."""
    arguments = build_parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except (CaptureError, NotConfiguredError) as error:
        print(f"dnstrail: {error}", file=sys.stderr)
        if arguments.command == "run":  # `check` may run in the same container, by kubectl exec
            from agent.process import tell_kubelet  # noqa: PLC0415  as above

            tell_kubelet(str(error))
        return 1
    except PageError as error:
        print(f"dnstrail: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130
