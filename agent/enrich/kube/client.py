"""Requests to the API server: one configuration, and connections made by it.

What it imports is large and slow to load, so `transport` imports this when it is first needed, off the agent's thread.
"""

from __future__ import annotations

import contextlib
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Self

import msgspec
import urllib3

from agent import __version__
from agent.enrich.kube import library
from agent.enrich.kube.access import CA, TOKEN, InCluster, Kubeconfig
from agent.enrich.kube.errors import NotConfiguredError, RefusedError, SilentError, UnreachableError, UntrustedError
from agent.enrich.kube.objects import UNREADABLE, Status
from agent.enrich.kube.trust import trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.enrich.kube.access import Access
    from agent.enrich.kube.body import Body
    from agent.enrich.kube.library import Library

CONNECT_SECONDS = 5.0
CHUNK_BYTES = 1 << 16
MAX_ERROR_BYTES = 1 << 16
MAX_ERROR_TEXT = 300
MAX_CONNECTIONS = 8
"""As many as there are threads that ask."""
BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""Errors of TLS that say nothing of certificates."""
HTTP_OK = 200
HTTP_ERROR = 300
"""From here on: redirections are none of an API server's."""

_decode_status = msgspec.json.Decoder(Status).decode


class Reply:
    """An answer whose body is still to come; a context manager."""

    def __init__(self, response: urllib3.BaseHTTPResponse, client: Client) -> None:
        self._response = response
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A connection whose answer was read to its end is in the pool again by now.
        self._response.close()

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives.

        Raises:
            SilentError: when nothing came for the time that the request allows.
            UnreachableError: when the connection broke.
        """
        try:
            yield from self._response.stream(CHUNK_BYTES)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._client.unreachable(error) from None

    def interrupt(self) -> None:
        """End the body; for another thread to call, so everything may be over already."""
        with contextlib.suppress(OSError, ValueError, RuntimeError, TypeError, AttributeError):
            self._response.shutdown()

    def check(self) -> None:
        """Accept only success.

        Raises:
            RefusedError: for all else, with the reason that the API server gives.
        """
        if HTTP_OK <= self._response.status < HTTP_ERROR:
            return
        data = b""
        for chunk in self.chunks():
            data += chunk
            if len(data) > MAX_ERROR_BYTES:
                break
        raise _refusal(self._response, data)


class Client:
    """One configuration, read when it is made, and the connections that were opened with it."""

    def __init__(self, access: Access) -> None:
        """Read the configuration.

        Raises:
            NotConfiguredError: when there is none, or none that makes sense.
        """
        kubernetes = library.load(whole=isinstance(access, Kubeconfig))
        self._errors = kubernetes.errors
        self._access = access
        try:
            self._configuration = _configuration(kubernetes, access)
            self._rest = kubernetes.rest_client(self._configuration)
            trust(self._rest, self._configuration)
        except self._errors as error:
            raise NotConfiguredError(f"{access}: {_in_words(error)}") from None

    def send(
        self, method: str, path_and_query: str, accept: str, read_seconds: float, body: Body | None = None
    ) -> Reply:
        """Ask. The token is read anew from its file once a minute.

        Raises:
            RefusedError: when the answer is no success.
            SilentError: when none came in time.
            UnreachableError: when there is no connection, or none that is trusted.
            NotConfiguredError: when the token is gone.
        """
        try:
            response = self._rest.request(
                method,
                self._configuration.host + path_and_query,
                headers=self._headers(accept) | ({} if body is None else {"Content-Type": body.content_type}),
                body=None if body is None else body.content,
                _request_timeout=(CONNECT_SECONDS, read_seconds),
            ).response
        except self._errors as error:
            raise self.unreachable(error) from None
        reply = Reply(response, self)
        try:
            reply.check()
        except BaseException:
            response.close()
            raise
        return reply

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._rest.close()

    def unreachable(self, error: Exception) -> UnreachableError:
        """What went wrong on the way to the API server, in one sentence."""
        configuration = self._configuration
        given = "the CA in the kubeconfig" if configuration.ca_cert_data else "the CAs of this machine"
        return _unreachable(error, configuration.host, configuration.ssl_ca_cert or given)

    def _headers(self, accept: str) -> dict[str, str]:
        try:
            settings = self._configuration.auth_settings()
        except self._errors as error:
            raise NotConfiguredError(f"{self._access}: {_in_words(error)}") from None
        token = settings["BearerToken"]["value"] if "BearerToken" in settings else None
        headers = {"Accept": accept, "User-Agent": f"dnstrail/{__version__}"}
        return headers | {"Authorization": token} if token else headers


def _configuration(kubernetes: Library, access: Access) -> Any:  # noqa: ANN401  a class of that library
    configuration = kubernetes.configuration()
    if isinstance(access, InCluster):
        loader = kubernetes.in_cluster_loader(
            token_filename=str(access.directory / TOKEN),
            cert_filename=str(access.directory / CA),
            environ=access.environment,
        )
        loader.load_and_set(configuration)
    else:
        library.load_kubeconfig(str(access.path), access.context, configuration, persist_config=False)
    # Retries, with what they need of patience, are the watch's.
    configuration.retries = False
    configuration.keep_alive = True
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    return configuration


def _unreachable(error: Exception, where: str, authorities: str) -> UnreachableError:
    """What went wrong on the way, in one sentence.

    Args:
        error: What was raised.
        where: URL of the API server.
        authorities: What its certificate is checked with.
    """
    chain = list(_chain(error))
    words = _in_words(error)
    if any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in chain):
        return SilentError(f"{where} accepts the connection and does not answer in time")
    if any(type(cause) is urllib3.exceptions.ConnectTimeoutError for cause in chain):  # not those that inherit from it
        return UnreachableError(f"{where} does not take up the connection within {CONNECT_SECONDS:.0f} s")
    tls = next(
        (cause for cause in chain if isinstance(cause, ssl.SSLError) and not isinstance(cause, BROKEN_OFF)), None
    )
    if isinstance(tls, ssl.SSLCertVerificationError):
        return UntrustedError(f"{where}: {tls.verify_message} (checked with {authorities})")
    if tls is not None:
        return UntrustedError(f"{where}: {(tls.reason or words).replace('_', ' ').lower()}")
    # The innermost is the system's own; what is around it repeats the request.
    reason = next((cause.strerror for cause in reversed(chain) if isinstance(cause, OSError) and cause.strerror), words)
    return UnreachableError(f"{where}: {reason}")


def _in_words(error: Exception) -> str:
    """What it says.

    The frames of a library that failed hold the error which holds them, and the agent's collector of such cycles rests
    most of the time: 12 KB an attempt. So they are cut here.
    """
    for cause in _chain(error):
        traceback.clear_frames(cause.__traceback__)
        cause.__traceback__ = None
    return (str(error).strip() or type(error).__name__)[:MAX_ERROR_TEXT]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those while whose handling it came about."""
    while error is not None:
        yield error
        error = error.__context__


def _refusal(response: urllib3.BaseHTTPResponse, data: bytes) -> RefusedError:
    try:
        status = _decode_status(data)
    except UNREADABLE:
        # Not the API server, but something before it.
        status = Status(message=data[:MAX_ERROR_TEXT].decode(errors="replace"))
    asked = response.headers.get("Retry-After", "")
    seconds = int(asked) if asked.isascii() and asked.isdigit() else 0
    return RefusedError(
        response.status, status.reason or f"HTTP{response.status}", status.message[:MAX_ERROR_TEXT], float(seconds)
    )
