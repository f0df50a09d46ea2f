"""The Kubernetes API as tests use it: objects are plain dictionaries, addressed by what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import urllib3

Manifest = dict[str, Any]

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
FIELD_MANAGER = "tests"
REQUEST_SECONDS = 30.0
CONNECTIONS = 16


class ApiError(Exception):
    """The API server refused: its HTTP status in `code`, its reason (`NotFound`, `Expired`, …) in `reason`."""

    def __init__(self, code: int, body: bytes) -> None:
        status = _status(body)
        self.code = code
        self.reason: str = status.get("reason", "")
        super().__init__(f"{code} {self.reason}: {status.get('message', '')}")


class Api:
    """A client of one API server; any number of threads may use it at once.

    Methods raise ApiError when the API server refuses, and urllib3.exceptions.HTTPError when it cannot be reached.
    """

    def __init__(
        self, url: str, ca_file: Path, *, token: str | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        """Describe a client; it connects when it is used.

        Args:
            url: Where the API server is.
            ca_file: What its certificate is verified with.
            token: A bearer token to be known by.
            certificate: The files of a certificate to be known by, and of its key.
        """
        self.url = url
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        cert_file, key_file = (None, None) if certificate is None else map(str, certificate)
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            headers=headers,
            retries=False,
            ca_certs=str(ca_file),
            cert_file=cert_file,
            key_file=key_file,
        )
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}

    def apply(self, objects: Iterable[Manifest]) -> list[Manifest]:
        """Make the cluster hold these objects with what they say, their status included; other objects remain.

        Returns:
            The objects as the API server has them now.
        """
        return [self._apply(one) for one in objects]

    def create(self, one: Manifest) -> Manifest:
        """Create an object, with its status; quicker than `apply`, and an error when it exists."""
        return self._with_status(one, self.request("POST", self.path_of(one, collection=True), one))

    def patch(self, one: Manifest, change: Mapping[str, Any], subresource: str = "") -> Manifest:
        """Merge a change into an object (null removes), or into its `status`."""
        return self.request("PATCH", self.path_of(one, subresource), change, MERGE)

    def delete(self, one: Manifest, *, grace_seconds: int = 0) -> Manifest:
        """Delete an object.

        With grace a pod on a node only gets its `deletionTimestamp`: a kubelet would delete it for good once its
        containers have ended, which here is the test's part.
        """
        return self.request("DELETE", self.path_of(one), {"gracePeriodSeconds": grace_seconds})

    def get(self, one: Manifest) -> Manifest:
        """Return the object as the API server has it."""
        return self.request("GET", self.path_of(one))

    def list(self, api_version: str, kind: str, namespace: str = "", query: str = "") -> Manifest:
        """Return a list object; its `metadata` has the `resourceVersion` from which to watch."""
        one = {"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace}}
        return self.request("GET", f"{self.path_of(one, collection=True)}?{query}")

    @contextmanager
    def watch(
        self, api_version: str, kind: str, resource_version: str, *, seconds: float = REQUEST_SECONDS, query: str = ""
    ) -> Iterator[Iterator[Manifest]]:
        """Watch a kind in all namespaces while the block lasts.

        Args:
            api_version: As in the objects.
            kind: As in the objects.
            resource_version: What is known already.
            seconds: How long to wait for each event.
            query: More parameters of the request.

        Yields:
            The events, until the API server ends the watch; urllib3's ReadTimeoutError when it falls silent.
        """
        one = {"apiVersion": api_version, "kind": kind, "metadata": {}}
        path = f"{self.path_of(one, collection=True)}?watch=1&resourceVersion={resource_version}&{query}"
        response = self._send("GET", path, seconds=seconds, whole=False)
        try:
            yield (json.loads(line) for line in _lines(response))
        finally:
            response.close()

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, content_type: str = JSON
    ) -> Manifest:
        """Do any request, and return what comes back."""
        raw = None if body is None else json.dumps(body).encode()
        answer: Manifest = json.loads(self._send(method, path, raw, content_type).data)
        return answer

    def says_ok(self, path: str) -> bool:
        """Tell whether an endpoint such as /readyz answers, and with 200."""
        try:
            return bool(self._send("GET", path).status == HTTPStatus.OK)
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def path_of(self, one: Manifest, subresource: str = "", *, collection: bool = False) -> str:
        """Return the path of an object, of one of its subresources, or of the collection that it belongs to."""
        plural, namespaced = self._resource(one["apiVersion"], one["kind"])
        metadata = one["metadata"]
        namespace = metadata.get("namespace") if namespaced else None
        parts = [
            _prefix(one["apiVersion"]),
            *(["namespaces", namespace] if namespace else []),
            plural,
            *([] if collection else [metadata["name"]]),
            *([subresource] if subresource else []),
        ]
        return "/".join(parts)

    def _apply(self, one: Manifest) -> Manifest:
        path = f"{self.path_of(one)}?fieldManager={FIELD_MANAGER}&force=true"
        without_status = {name: value for name, value in one.items() if name != "status"}
        return self._with_status(one, self.request("PATCH", path, without_status, APPLY))

    def _with_status(self, one: Manifest, held: Manifest) -> Manifest:
        """Set the status too, which the API server ignores in the object itself."""
        return self.patch(one, {"status": one["status"]}, "status") if "status" in one else held

    def _resource(self, api_version: str, kind: str) -> tuple[str, bool]:
        """Return a kind's name in paths, and whether it belongs to namespaces; the API server is asked once."""
        if (api_version, kind) not in self._kinds:
            for resource in self.request("GET", _prefix(api_version))["resources"]:
                if "/" not in resource["name"]:
                    self._kinds[api_version, resource["kind"]] = resource["name"], resource["namespaced"]
        return self._kinds[api_version, kind]

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = JSON,
        *,
        seconds: float = REQUEST_SECONDS,
        whole: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        headers = {**self._pool.headers, "Content-Type": content_type, "Accept": JSON}
        response = self._pool.request(
            method, self.url + path, body=body, headers=headers, timeout=seconds, preload_content=whole
        )
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(response.status, response.data)
        return response


def _prefix(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _status(body: bytes) -> Manifest:
    """Return the Status object of an error; not every error has one."""
    try:
        status = json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")}
    return status if isinstance(status, dict) else {"message": str(status)}


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for raw in response.stream(1 << 16):
        *lines, rest = (rest + raw).split(b"\n")
        yield from lines
