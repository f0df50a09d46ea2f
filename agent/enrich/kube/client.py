"""Requests to the API server by means of the `kubernetes` package: the only module that imports it.

It costs 30 MiB and a third of a second, so `transport` imports this when it is first needed, off the agent's thread.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Self

import msgspec
import urllib3
from kubernetes.client import ApiException, Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.config.kube_config import load_kube_config

from agent import __version__
from agent.enrich.kube.access import InCluster
from agent.enrich.kube.errors import NotConfiguredError, RefusedError, SilentError, UnreachableError
from agent.enrich.kube.objects import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.enrich.kube.access import Access

CONNECT_SECONDS = 5.0
CHUNK_BYTES = 1 << 16
MAX_ERROR_BYTES = 1 << 16
MAX_ERROR_TEXT = 300
MAX_CONNECTIONS = 8
"""As many as there are threads that ask."""
HTTP_OK = 200
HTTP_ERROR = 300
"""From here on: redirections are none of an API server's."""

_decode_status = msgspec.json.Decoder(Status).decode


class Reply:
    """An answer whose body is still to come; a context manager."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

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
            raise _unreachable(error) from None

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
        octets = b""
        for chunk in self.chunks():
            octets += chunk
            if len(octets) > MAX_ERROR_BYTES:
                break
        raise _refusal(self._response, octets)


class Client:
    """One configuration, read when it is made, and the connections that were opened with it."""

    def __init__(self, access: Access) -> None:
        """Read the configuration.

        Raises:
            NotConfiguredError: when there is none, or none that makes sense.
        """
        try:
            self._configuration = _configuration(access)
            self._rest = RESTClientObject(self._configuration)
        except (ConfigException, OSError, ValueError, TypeError, KeyError, urllib3.exceptions.HTTPError) as error:
            raise NotConfiguredError(f"Kubernetes configuration: {error}") from None

    def get(self, path_and_query: str, accept: str, read_seconds: float) -> Reply:
        """Ask. The token is read anew from its file once a minute.

        Raises:
            RefusedError: when the answer is no success.
            SilentError: when none came in time.
            UnreachableError: when there is no connection, or none that is trusted.
            NotConfiguredError: when the token is gone.
        """
        try:
            response = self._rest.request(  # type: ignore[no-untyped-call]
                "GET",
                self._configuration.host + path_and_query,
                headers=self._headers(accept),
                _request_timeout=(CONNECT_SECONDS, read_seconds),
            ).response
        except (urllib3.exceptions.HTTPError, ApiException, OSError, ValueError) as error:
            raise _unreachable(error) from None
        reply = Reply(response)
        try:
            reply.check()
        except BaseException:
            response.close()
            raise
        return reply

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._rest.close()

    def _headers(self, accept: str) -> dict[str, str]:
        try:
            settings = self._configuration.auth_settings()
        except (ConfigException, OSError) as error:
            raise NotConfiguredError(f"Kubernetes credentials: {error}") from None
        token = settings["BearerToken"]["value"] if "BearerToken" in settings else None
        headers = {"Accept": accept, "User-Agent": f"dnstrail/{__version__}"}
        return headers | {"Authorization": token} if token else headers


def _configuration(access: Access) -> Configuration:
    configuration = Configuration()
    if isinstance(access, InCluster):
        loader = InClusterConfigLoader(  # type: ignore[no-untyped-call]
            token_filename=str(access.directory / "token"),
            cert_filename=str(access.directory / "ca.crt"),
            environ=access.environment,
        )
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
    else:
        path = str(access.path)
        load_kube_config(path, access.context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
    # Retries, with what they need of patience, are the watch's.
    configuration.retries = False
    configuration.keep_alive = True
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    return configuration


def _unreachable(error: Exception) -> UnreachableError:
    """Put it in words; and let go of the library's frames, which refer to the error that refers to them."""
    text = str(error).strip() or type(error).__name__
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one.__traceback__, one = None, one.__context__
    kind = SilentError if isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError)) else UnreachableError
    return kind(text[:MAX_ERROR_TEXT])


def _refusal(response: urllib3.BaseHTTPResponse, octets: bytes) -> RefusedError:
    try:
        status = _decode_status(octets)
    except msgspec.DecodeError:
        # Not the API server, but something before it.
        status = Status(message=octets[:MAX_ERROR_TEXT].decode(errors="replace"))
    asked = response.headers.get("Retry-After", "")
    seconds = int(asked) if asked.isascii() and asked.isdigit() else 0
    return RefusedError(
        response.status, status.reason or f"HTTP{response.status}", status.message[:MAX_ERROR_TEXT], float(seconds)
    )
