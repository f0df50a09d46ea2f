"""The way to the API server, shared by all threads that ask."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from agent.enrich.kube.body import JSON
from agent.enrich.kube.errors import RefusedError, UntrustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.enrich.kube.access import Access
    from agent.enrich.kube.body import Body
    from agent.enrich.kube.client import Client, Reply

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
UNAUTHORIZED = 401


class Transport:
    """Knows how to ask. The configuration is read at the first request, and again when it is no longer accepted."""

    def __init__(self, access: Access) -> None:
        self.renewals = 0
        """How often the API server and we no longer knew each other, and the configuration was read anew."""
        self._access = access
        self._client: Client | None = None
        self._lock = threading.Lock()

    def get(self, path: str, query: Mapping[str, str], read_seconds: float, accept: str = JSON) -> Reply:
        """Ask; each wait for something to read is limited by `read_seconds`.

        Raises:
            RefusedError: when the answer is no success.
            UnreachableError: when there is none.
            NotConfiguredError: when it is not known how to ask.
        """
        where = _with_query(path, query)
        return self._ask(lambda client: client.send("GET", where, accept, read_seconds))

    def send(self, method: str, path: str, query: Mapping[str, str], read_seconds: float, body: Body) -> Reply:
        """Change something; raises what `get` raises."""
        where = _with_query(path, query)
        return self._ask(lambda client: client.send(method, where, JSON, read_seconds, body))

    def _ask(self, request: Callable[[Client], Reply]) -> Reply:
        client = self._connected()
        try:
            return request(client)
        except UntrustedError:
            self._distrust(client)
            raise
        except RefusedError as refusal:
            if refusal.code == UNAUTHORIZED:
                self._distrust(client)
            raise

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                from agent.enrich.kube.client import Client  # noqa: PLC0415  the expensive part, only when needed

                self._client = Client(self._access)
            return self._client

    def _distrust(self, client: Client) -> None:
        """The token has expired, or the certificate; what replaced it is where it was. The first thread does it."""
        with self._lock:
            if self._client is client:
                self._client = None
                self.renewals += 1
                client.close()


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
