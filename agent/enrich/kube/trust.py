"""Whose certificates are accepted on the way to the API server, and which of our own is shown to it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from urllib3.util.ssl_ import create_urllib3_context

from agent.enrich.kube.errors import NotConfiguredError

if TYPE_CHECKING:
    from collections.abc import Callable

REPLACED = ("ca_certs", "ca_cert_data", "cert_file", "key_file")
"""What the context stands for: urllib3 would load them into it anew for each connection, while others use it."""


def trust(rest_client: Any, configuration: Any) -> None:  # noqa: ANN401  classes of the kubernetes package
    """Let every connection of this client use one context that is made here.

    Args:
        rest_client: kubernetes.client.rest.RESTClientObject.
        configuration: What it was made of.

    Raises:
        NotConfiguredError: when a certificate or a key cannot be read.
    """
    if not configuration.host.startswith("https:"):
        return
    options = rest_client.pool_manager.connection_pool_kw
    options["ssl_context"] = context(configuration)
    for name in REPLACED:
        options.pop(name, None)


def context(configuration: Any) -> ssl.SSLContext:  # noqa: ANN401  as above
    """What is checked of the API server's certificate: its signatures up to the CA, its dates, and its names.

    From Python 3.13 on OpenSSL also insists on the form that RFC 5280 wants (VERIFY_X509_STRICT): a keyUsage in each
    CA, an authorityKeyIdentifier in each certificate. The CAs of whole distributions lack them, EKS's and MicroK8s's
    among them, and no Go program minds, kubelet and kubectl included. Who signed is checked without that flag just as
    well.

    Raises:
        NotConfiguredError: when a certificate or a key cannot be read.
    """
    made = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if configuration.verify_ssl else ssl.CERT_NONE)
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    authorities, authorities_text = configuration.ssl_ca_cert, configuration.ca_cert_data
    if authorities or authorities_text:
        _load("CA certificate", authorities, lambda: made.load_verify_locations(authorities, cadata=authorities_text))
    elif configuration.verify_ssl:
        made.load_default_certs()
    certificate, key = configuration.cert_file, configuration.key_file
    if certificate:
        _load("client certificate", certificate, lambda: made.load_cert_chain(certificate, key, _no_passphrase))
    return made


def _load(what: str, file: str | None, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        # An error of OpenSSL names its own source file and line instead of the file that it read.
        reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
        words = str(reason or error).replace("_", " ").lower()
        raise NotConfiguredError(f"the {what} {file or 'in the configuration'} cannot be used: {words}") from None


def _no_passphrase() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("its key is encrypted, and nobody is there to be asked for the passphrase")
