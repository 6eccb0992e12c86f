"""Requests for certificates: the key stays at the site, and the authority certifies it for whom it knows."""

from __future__ import annotations

import shutil

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import Credentials
from p2pft_flower.transport.trust.authority import sign_request
from p2pft_flower.transport.trust.certificates import Identity
from p2pft_flower.transport.trust.requests import make_request
from tests.transport.federation import Federation


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("north"))


def test_a_site_has_its_certificate_for_a_key_that_never_left_it(north, tmp_path):
    site, office = tmp_path / "site", tmp_path / "office"
    file = make_request(site, Identity("north", 3), ["ward.example", "10.0.0.3"])
    assert {f.name: f.stat().st_mode & 0o777 for f in site.iterdir()} == {
        "peer.key": 0o600,
        "peer.csr": 0o600,
    }
    key = (site / "peer.key").read_bytes()
    facts = sign_request(north.authority, office, 3, file)
    assert (facts.identity, facts.names) == (Identity("north", 3), ("ward.example", "10.0.0.3"))
    assert {f.name for f in office.iterdir()} == {"ca.pem", "peer.pem"}
    for name in ("ca.pem", "peer.pem"):
        shutil.copy(office / name, site / name)
    own = Credentials.load(site, 3)
    assert own.facts == facts
    assert (site / "peer.key").read_bytes() == key
    own.signatures()  # its key signs records, too


def test_the_coordinator_may_request_one_too(north, tmp_path):
    file = make_request(tmp_path / "office", Identity("north", "coordinator"))
    facts = sign_request(north.authority, tmp_path / "out", "coordinator", file)
    assert facts.identity == Identity("north", "coordinator")


def request(key, *names, by=None):
    """Return a request in PEM form, as another program could make it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(by or key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def uri(text):
    return x509.UniformResourceIdentifier(text)


KEY = ec.generate_private_key(ec.SECP256R1())
PEER_3 = uri("p2pft://north/peer/3")


def altered():
    """A request with one bit of its signature changed."""
    content = x509.load_pem_x509_csr(request(KEY, PEER_3)).public_bytes(serialization.Encoding.DER)
    return x509.load_der_x509_csr(content[:-1] + bytes([content[-1] ^ 1])).public_bytes(
        serialization.Encoding.PEM
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no request", "no request for a certificate of a federation"),
        (request(KEY), "no request for a certificate of a federation"),
        (request(KEY, uri("p2pft://north/peer/4")), "is for peer 4 .*, not for peer 3"),
        (request(KEY, uri("p2pft://south/peer/3")), "is for peer 3 of federation 'south', not for"),
        (request(KEY, uri("p2pft://north/authority")), "is for the authority of"),
        (request(KEY, PEER_3, uri("p2pft://north/peer/4")), "is for nobody of a federation"),
        (request(KEY, uri("https://example.org")), "is for nobody of a federation"),
        (request(rsa.generate_private_key(65537, 2048), PEER_3), "has no key on the curve secp256r1"),
        (request(ec.generate_private_key(ec.SECP384R1()), PEER_3), "has no key on the curve secp256r1"),
        (request(KEY, PEER_3, x509.DNSName("peer-4.north.p2pft.internal")), r"ends in \.p2pft\.internal"),
        (altered(), "not signed with its own key"),
    ],
)
def test_what_cannot_be_certified_leaves_nothing_behind(content, says, north, tmp_path):
    file = tmp_path / "peer.csr"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        sign_request(north.authority, tmp_path / "out", 3, file)
    assert not (tmp_path / "out").exists()


def test_a_missing_request_and_a_folder_in_use_are_named(north, tmp_path):
    with pytest.raises(ConfigError, match=r"peer\.csr: No such file"):
        sign_request(north.authority, tmp_path / "out", 3, tmp_path / "peer.csr")
    folder = north.issue(3)
    with pytest.raises(ConfigError, match="is there already and is not overwritten"):
        make_request(folder, Identity("north", 3))
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        make_request(tmp_path / "new", Identity("north", 3), ["host:9000"])
    assert not (tmp_path / "new").exists()
