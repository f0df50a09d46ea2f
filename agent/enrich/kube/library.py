"""What is used of the `kubernetes` package: configuration, credentials, transport. The only module that imports it.

The package's `__init__` imports all of it, with OAuth, requests, websockets and pydantic: 30 MiB. A pod of the cluster
uses none of that, so there its `__init__` is passed over, which leaves 14 MiB, most of them urllib3's and TLS's.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import urllib3

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "kubernetes"
PASSED_OVER = (PACKAGE, f"{PACKAGE}.config")


class Library(NamedTuple):
    """Classes of the package; it is typed in part only."""

    configuration: Any
    """kubernetes.client.Configuration."""
    rest_client: Any
    """kubernetes.client.rest.RESTClientObject."""
    in_cluster_loader: Any
    """kubernetes.config.incluster_config.InClusterConfigLoader."""
    errors: tuple[type[Exception], ...]
    """What they raise, for what is wrong outside of them."""


@cache
def load(*, whole: bool) -> Library:
    """Import what is needed; `whole` is what a kubeconfig needs."""
    if whole or PACKAGE in sys.modules:
        import_module(f"{PACKAGE}.config")
        return _collect()
    with _passed_over():
        return _collect()


def load_kubeconfig(*arguments: object, **options: object) -> None:
    """kubernetes.config.load_kube_config; only after `load(whole=True)`."""
    import_module(f"{PACKAGE}.config").load_kube_config(*arguments, **options)


def _collect() -> Library:
    client, rest = import_module(f"{PACKAGE}.client.configuration"), import_module(f"{PACKAGE}.client.rest")
    return Library(
        configuration=client.Configuration,
        rest_client=rest.RESTClientObject,
        in_cluster_loader=import_module(f"{PACKAGE}.config.incluster_config").InClusterConfigLoader,
        errors=(
            import_module(f"{PACKAGE}.client.exceptions").OpenApiException,
            import_module(f"{PACKAGE}.config.config_exception").ConfigException,
            urllib3.exceptions.HTTPError,
            OSError,
            # Of files that are not what they should be.
            ValueError,
            TypeError,
            KeyError,
        ),
    )


@contextmanager
def _passed_over() -> Iterator[None]:
    """Let the package's parts be imported without its `__init__`; whoever imports it afterwards gets it whole."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    for name in PASSED_OVER:
        bare = ModuleType(name)
        bare.__path__ = ["/".join((place, *name.split(".")[1:])) for place in places]
        sys.modules[name] = bare
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
