"""Which certificates of an API server are accepted, shown by real handshakes with real certificates."""

import json
import shutil
import ssl
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from agent.enrich.kube.access import Access, InCluster, Kubeconfig
from agent.enrich.kube.errors import KubeError, NotConfiguredError, UntrustedError
from agent.enrich.kube.live import LiveCluster
from agent.enrich.kube.transport import Transport
from tests.cluster.credentials import CLIENT_EXTENSIONS, expire, key_of, make_certificate
from tests.unit.kube_replay import BOUND_SECONDS, PODS, QUICK, Replay, replaying

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

IS_CA = "basicConstraints=critical,CA:TRUE"
MAY_SIGN = "keyUsage=critical,keyCertSign,cRLSign"
SERVES = ("extendedKeyUsage=serverAuth", "subjectAltName=IP:127.0.0.1")
NAMES_NO_AUTHORITY = "authorityKeyIdentifier=none"
FORMS = {
    "as RFC 5280 wants it": ((IS_CA, MAY_SIGN), SERVES),
    "a CA without keyUsage, as EKS had it": ((IS_CA,), SERVES),
    "a certificate that does not name its authority, as MicroK8s had it": (
        (IS_CA, MAY_SIGN),
        (*SERVES, NAMES_NO_AUTHORITY),
    ),
    "both": ((IS_CA,), (*SERVES, NAMES_NO_AUTHORITY)),
}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any Python behaves like 3.13, where urllib3 makes every context strict."""
    monkeypatch.setattr(urllib3.util.ssl_, "sys", types.SimpleNamespace(version_info=(3, 13)))


@contextmanager
def api_server(directory: Path, authority: Sequence[str], serving: Sequence[str]) -> Iterator[Replay]:
    """An API server with a certificate in `serving.crt`, signed by `ca.crt`; both have these extensions."""
    ca, certificate = directory / "ca.crt", directory / "serving.crt"
    make_certificate(ca, "/CN=kubernetes", authority)
    make_certificate(certificate, "/CN=kube-apiserver", serving, signed_by=ca)
    with replaying(serving_with(certificate)) as replay:
        yield replay


def serving_with(certificate: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key_of(certificate))
    return tls


def inside(directory: Path, server: Replay) -> InCluster:
    """As a pod that has these files from the kubelet: `token` and `ca.crt`."""
    (directory / "token").write_text("first")
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
    return InCluster(directory, where)


def kubeconfig(directory: Path, server: Replay, host: str = "127.0.0.1", **cluster: object) -> Kubeconfig:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": f"https://{host}:{server.server_port}", **cluster}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (directory / "kubeconfig").write_text(json.dumps(content))
    return Kubeconfig(directory / "kubeconfig")


def failure(access: Access) -> KubeError:
    with pytest.raises(KubeError) as raised:
        Transport(access).get(PODS, {}, BOUND_SECONDS)
    return raised.value


def test_these_certificates_are_what_python_3_13_does_not_take(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        pool = urllib3.PoolManager(ca_certs=str(tmp_path / "ca.crt"), retries=False)
        with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            pool.request("GET", f"https://127.0.0.1:{server.server_port}{PODS}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["in a pod", "by a kubeconfig"])
def test_a_cluster_is_known_whatever_the_form_of_its_certificates(form: str, where: str, tmp_path: Path):
    with api_server(tmp_path, *FORMS[form]) as server:
        ca = {"certificate-authority": str(tmp_path / "ca.crt")}
        access = inside(tmp_path, server) if where == "in a pod" else kubeconfig(tmp_path, server, **ca)
        cluster = LiveCluster(access, "node-a", timing=QUICK)
        cluster.start()
        end = time.monotonic() + BOUND_SECONDS
        while not (cluster.is_synced and all(one.connected for one in cluster.health if one.required)):
            assert time.monotonic() < end, cluster.health
            time.sleep(0.002)
            cluster.poll()
        cluster.stop()
        assert not any(one.errors for one in cluster.health), "lists, watches and single objects"


def test_a_certificate_of_another_authority_is_refused_and_its_reason_and_the_file_are_named(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        make_certificate(tmp_path / "ca.crt", "/CN=kubernetes", FORMS["both"][0])
        error = failure(inside(tmp_path, server))
    assert isinstance(error, UntrustedError)
    assert "certificate" in str(error) or "signature" in str(error)
    assert f"(checked with {tmp_path}/ca.crt)" in str(error)
    assert str(error).startswith(f"https://127.0.0.1:{server.server_port}: ")


def test_a_certificate_that_signs_itself_is_refused(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        make_certificate(tmp_path / "ca.crt", "/CN=somebody", FORMS["both"][0])
        error = failure(inside(tmp_path, server))
    assert isinstance(error, UntrustedError)


def test_a_certificate_for_another_address_is_refused(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        ca = {"certificate-authority": str(tmp_path / "ca.crt")}
        error = failure(kubeconfig(tmp_path, server, "localhost", **ca))
    assert isinstance(error, UntrustedError)
    assert "localhost" in str(error).partition(": ")[2]


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path):
    ca, certificate = tmp_path / "ca.crt", tmp_path / "serving.crt"
    make_certificate(ca, "/CN=kubernetes", (IS_CA, MAY_SIGN))
    make_certificate(certificate, "/CN=kube-apiserver", SERVES, signed_by=ca)
    expire(certificate, signed_by=ca)
    with replaying(serving_with(certificate)) as server:
        error = failure(inside(tmp_path, server))
    assert isinstance(error, UntrustedError)
    assert "expired" in str(error)


def test_a_certificate_that_a_server_of_the_cluster_signed_is_refused(tmp_path: Path):
    """It has the CA's signature, and may not sign."""
    with api_server(tmp_path, *FORMS["both"]) as server:
        leaf = tmp_path / "serving.crt"
        forged = tmp_path / "forged.crt"
        make_certificate(forged, "/CN=kube-apiserver", SERVES, signed_by=leaf)
        chain = tmp_path / "chain.crt"
        chain.write_text(forged.read_text() + leaf.read_text())
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain, key_of(forged))
        access = inside(tmp_path, server)
        with replaying(tls) as impostor:
            access.environment["KUBERNETES_SERVICE_PORT"] = str(impostor.server_port)  # type: ignore[index]
            error = failure(access)
    assert isinstance(error, UntrustedError)


def test_without_a_ca_those_of_the_machine_are_asked(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        error = failure(kubeconfig(tmp_path, server))
    assert isinstance(error, UntrustedError)
    assert "(checked with the CAs of this machine)" in str(error)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_kubeconfig_may_do_without_verification(tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        access = kubeconfig(tmp_path, server, **{"insecure-skip-tls-verify": True})
        with Transport(access).get(PODS, {}, BOUND_SECONDS) as reply:
            assert b"".join(reply.chunks())


def test_the_name_that_the_kubeconfig_gives_is_checked_instead_of_the_address(tmp_path: Path):
    serves = ("extendedKeyUsage=serverAuth", "subjectAltName=DNS:kubernetes.test")
    with api_server(tmp_path, (IS_CA,), serves) as server:
        ca = {"certificate-authority": str(tmp_path / "ca.crt")}
        access = kubeconfig(tmp_path, server, **ca, **{"tls-server-name": "kubernetes.test"})
        with Transport(access).get(PODS, {}, BOUND_SECONDS) as reply:
            assert b"".join(reply.chunks())
        assert isinstance(failure(kubeconfig(tmp_path, server, **ca)), UntrustedError)


def test_a_client_certificate_of_the_kubeconfig_is_shown(tmp_path: Path):
    ca, serving, client = (tmp_path / f"{name}.crt" for name in ("ca", "serving", "client"))
    make_certificate(ca, "/CN=kubernetes", (IS_CA,))
    make_certificate(serving, "/CN=kube-apiserver", SERVES, signed_by=ca)
    make_certificate(client, "/O=system:masters/CN=admin", CLIENT_EXTENSIONS, signed_by=ca)
    tls = serving_with(serving)
    tls.load_verify_locations(ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    with replaying(tls) as server:
        access = kubeconfig(tmp_path, server, **{"certificate-authority": str(ca)})
        content = json.loads(access.path.read_text())
        assert isinstance(failure(access), KubeError), "the server insists on it"
        content["users"][0]["user"] = {"client-certificate": str(client), "client-key": str(key_of(client))}
        access.path.write_text(json.dumps(content))
        with Transport(access).get(PODS, {}, BOUND_SECONDS) as reply:
            assert b"".join(reply.chunks())


@pytest.mark.parametrize("content", ["nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_that_cannot_be_read_is_named(content: str, tmp_path: Path):
    with api_server(tmp_path, *FORMS["both"]) as server:
        (tmp_path / "ca.crt").write_text(content)
        error = failure(inside(tmp_path, server))
    assert isinstance(error, NotConfiguredError)
    assert f"the CA certificate {tmp_path}/ca.crt cannot be used: " in str(error)


def test_a_server_that_does_not_speak_tls_is_no_mystery(tmp_path: Path):
    with replaying() as server:
        make_certificate(tmp_path / "ca.crt", "/CN=kubernetes", (IS_CA,))
        error = failure(inside(tmp_path, server))
    assert isinstance(error, UntrustedError)
    assert str(error).endswith("wrong version number") or "record layer failure" in str(error)
