"""Keys and certificates of one cluster, which live as long as it does."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = dt.timedelta(days=30)
# A clock that is a little behind must not refuse what was made just now.
EARLIER = dt.timedelta(minutes=5)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key: P-256, which is made in no time."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as text."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Its public half as text."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Who signs every certificate of one cluster. Files go to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = new_key()
        self.subject = subject("draftyard-test-authority")
        unsigned = self.started(self.subject, self.key.public_key())
        limits = x509.BasicConstraints(ca=True, path_length=0)
        made = unsigned.add_extension(limits, critical=True).sign(self.key, hashes.SHA256())
        self.certificate = folder / "authority.crt"
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def started(self, holder: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        """What all certificates have in common."""
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(holder)
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLIER)
            .not_valid_after(now + LIFETIME)
        )

    def issue(self, name: str, group: str = "", hosts: Sequence[str] = ()) -> KeyPair:
        """A certificate: of a server with `hosts`, else of the client `name`, who is in `group`."""
        key = new_key()
        use = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        unsigned = self.started(subject(name, group), key.public_key())
        unsigned = unsigned.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if hosts:
            unsigned = unsigned.add_extension(x509.SubjectAlternativeName([host_name(host) for host in hosts]), False)
        made = unsigned.sign(self.key, hashes.SHA256())
        file = name.replace(":", "-")
        pair = KeyPair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(key_pem(key))
        return pair


def subject(name: str, group: str = "") -> x509.Name:
    """Who holds a certificate; Kubernetes reads the user from the name and the group from the organisation."""
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def host_name(host: str) -> x509.GeneralName:
    """An address or a name of a server."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
