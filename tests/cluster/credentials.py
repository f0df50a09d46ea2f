"""What the parts of a cluster know each other by: a CA, certificates that it signed, the key of service-account tokens.

All of it is made by `openssl`, lies in one directory and is good for a few days.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVING_NAMES = (
    "IP:127.0.0.1,IP:::1,IP:10.96.0.1,DNS:localhost,"
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
)
CA_EXTENSIONS = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
CLIENT_EXTENSIONS = ("extendedKeyUsage=clientAuth",)
SERVER_EXTENSIONS = ("extendedKeyUsage=serverAuth", f"subjectAltName={SERVING_NAMES}")
DAYS = "7"
OPENSSL_SECONDS = 30
# openssl's own configuration would add extensions that differ between distributions.
RENEWAL_CONFIGURATION = f"""\
[ca]
default_ca = renewal
[renewal]
database = {{directory}}/index.txt
new_certs_dir = {{directory}}
rand_serial = yes
default_md = sha256
policy = policy
[policy]
commonName = supplied
[extensions]
{SERVER_EXTENSIONS[0]}
{SERVER_EXTENSIONS[1]}
"""
BARE_CONFIGURATION = "[req]\ndistinguished_name=subject\n[subject]\n"


class Credentials:
    """The files of one cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.crt"
        self.serving = directory / "serving.crt"
        self.admin = directory / "admin.crt"
        self.token_key = directory / "tokens.key"
        self.token_public_key = directory / "tokens.pub"

    def make(self) -> None:
        """Write all files."""
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        make_certificate(self.ca, "/CN=kubernetes", CA_EXTENSIONS)
        make_certificate(self.serving, "/CN=kube-apiserver", SERVER_EXTENSIONS, signed_by=self.ca)
        make_certificate(self.admin, "/O=system:masters/CN=admin", CLIENT_EXTENSIONS, signed_by=self.ca)
        _openssl("genrsa", "-out", str(self.token_key), "2048")
        _openssl("rsa", "-in", str(self.token_key), "-pubout", "-out", str(self.token_public_key))

    def sign_token(self, account: dict[str, Any], seconds: float) -> str:
        """Return a token as the TokenRequest API makes it, but for any lifetime: the API grants ten minutes at least.

        Args:
            account: The ServiceAccount as the API server has it.
            seconds: Until it expires; may be negative. The API server forgives a minute more.
        """
        now, name, namespace = time.time(), account["metadata"]["name"], account["metadata"]["namespace"]
        claims = {
            "aud": [ISSUER],
            "exp": int(now + seconds),
            "iat": int(now),
            "nbf": int(now),
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]},
            },
        }
        signed = f"{_segment(_json({'alg': 'RS256'}))}.{_segment(_json(claims))}"
        signature = _openssl("dgst", "-sha256", "-sign", str(self.token_key), stdin=signed.encode())
        return f"{signed}.{_segment(signature)}"


def make_certificate(path: Path, subject: str, extensions: Sequence[str], *, signed_by: Path | None = None) -> None:
    """Write a certificate, and its key beside it.

    Args:
        path: Where to.
        subject: As openssl spells it: /CN=name.
        extensions: As openssl spells them.
        signed_by: Another certificate whose key is beside it; None: it signs itself.
    """
    configuration = path.parent / "openssl.cnf"
    configuration.write_text(BARE_CONFIGURATION)
    issuer = [] if signed_by is None else ["-CA", str(signed_by), "-CAkey", str(key_of(signed_by))]
    _openssl(
        *("req", "-x509", "-config", str(configuration), "-subj", subject, "-days", DAYS),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key_of(path))),
        *("-out", str(path), *issuer),
        *(argument for extension in extensions for argument in ("-addext", extension)),
    )


def expire(path: Path, *, signed_by: Path) -> None:
    """Replace a certificate by one that says the same and was good for a day, long ago."""
    directory = path.parent
    request, configuration = directory / "request.csr", directory / "ca.cnf"
    configuration.write_text(RENEWAL_CONFIGURATION.format(directory=directory))
    (directory / "index.txt").touch()
    _openssl("x509", "-x509toreq", "-in", str(path), "-key", str(key_of(path)), "-out", str(request))
    _openssl(
        *("ca", "-batch", "-notext", "-config", str(configuration), "-in", str(request), "-out", str(path)),
        *("-cert", str(signed_by), "-keyfile", str(key_of(signed_by))),
        *("-extfile", str(configuration), "-extensions", "extensions"),
        *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z"),
    )


def key_of(certificate: Path) -> Path:
    """Return where the private key of a certificate lies."""
    return certificate.with_suffix(".key")


def _json(claims: dict[str, Any]) -> bytes:
    return json.dumps(claims, separators=(",", ":")).encode()


def _segment(data: bytes) -> str:
    """Base64 as tokens spell it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        ["openssl", *arguments], input=stdin, capture_output=True, check=False, timeout=OPENSSL_SECONDS
    )
    assert done.returncode == 0, f"openssl {arguments[0]} failed: {done.stderr.decode()}"
    return done.stdout
