"""Keys: what protects secrets at rest and what signs tokens.

Everything hangs on Django's SECRET_KEY (and SECRET_KEY_FALLBACKS while it is being changed): from it HKDF derives one
key per purpose. Digests of client secrets, codes and refresh tokens are keyed (HMAC-SHA-256), so a stolen database
tells nothing about them; the private parts of signing keys are encrypted (Fernet).
"""

from __future__ import annotations

import base64
import functools
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Mapping
from typing import Any, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from fhirstore import models

logger = logging.getLogger(__name__)

ALGORITHM: Final = "ES256"


@functools.cache
def _derive(secret_key: str, purpose: str) -> bytes:
    """Derive 32 bytes for one purpose from a secret key."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=f"fhirbots {purpose}".encode())
    return kdf.derive(secret_key.encode())


def derived_keys(purpose: str) -> list[bytes]:
    """Return the 32-byte keys of a purpose: the one of SECRET_KEY first, then those of SECRET_KEY_FALLBACKS."""
    return [_derive(key, purpose) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]


def encryption(purpose: str) -> MultiFernet:
    """Encryption at rest for one purpose; old keys of SECRET_KEY_FALLBACKS still decrypt."""
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived_keys(purpose)])


def digest(secret: str) -> bytes:
    """Return the keyed digest under which a secret of high entropy is stored (32 bytes)."""
    return hmac.digest(derived_keys("secret digest")[0], secret.encode(), "sha256")


def digests(secret: str) -> list[bytes]:
    """Return every digest the secret may be stored under: one for each secret key in force."""
    return [hmac.digest(key, secret.encode(), "sha256") for key in derived_keys("secret digest")]


def is_digest_of(stored: bytes | memoryview | None, secret: str) -> bool:
    """True if `stored` is a digest of the secret; takes the same time whether or not it is."""
    found = False
    for each in digests(secret):
        found |= hmac.compare_digest(bytes(stored or b""), each)
    return found


def new_secret() -> str:
    """Return a new random secret: 64 hexadecimal digits, as Medplum's client secrets are."""
    return secrets.token_hex(32)


class _KeyRing:
    """The signing keys of this installation, loaded once per process and again when an unknown key id turns up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._public: dict[str, ECKey] = {}
        self._signing: ECKey | None = None

    def signing_key(self) -> ECKey:
        """The newest key this installation can still decrypt; made on first use."""
        with self._lock:
            if self._signing is None:
                self._signing = self._load_private() or self._create()
                self._load_public()
            return self._signing

    def public_key(self, kid: str) -> ECKey | None:
        """The public key of a key id, None if there is none."""
        if kid not in self._public:
            with self._lock:
                self._load_public()
        return self._public.get(kid)

    def public_keys(self) -> list[ECKey]:
        """All keys that verify tokens."""
        self.signing_key()
        with self._lock:
            self._load_public()
        return list(self._public.values())

    def forget(self) -> None:
        """Load the keys anew at the next use (another database, another SECRET_KEY)."""
        with self._lock:
            self._public, self._signing = {}, None

    def _load_public(self) -> None:
        self._public = {
            row.kid: ECKey.import_key(row.public_jwk) for row in models.SigningKey.objects.order_by("created")
        }

    def _load_private(self) -> ECKey | None:
        for row in models.SigningKey.objects.order_by("-created"):
            try:
                private = encryption("signing key").decrypt(bytes(row.private_encrypted))
            except InvalidToken:
                logger.warning(
                    "Signing key %s was encrypted with another SECRET_KEY; it only verifies.", row.kid
                )
                continue
            return ECKey.import_key(json.loads(private))
        return None

    def _create(self) -> ECKey:
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, private=True, auto_kid=True)
        private = json.dumps(key.as_dict(private=True)).encode()
        models.SigningKey.objects.create(
            kid=str(key.kid),
            algorithm=ALGORITHM,
            public_jwk=key.as_dict(private=False),
            private_encrypted=encryption("signing key").encrypt(private),
        )
        return key


key_ring: Final = _KeyRing()


def rotate() -> tuple[int, int]:
    """Encrypt the signing keys anew with the present SECRET_KEY; returns how many there are, and how many no key opens."""
    rows, lost = list(models.SigningKey.objects.all()), 0
    for row in rows:
        try:
            row.private_encrypted = encryption("signing key").rotate(bytes(row.private_encrypted))
        except InvalidToken:
            lost += 1
            continue
        row.save(update_fields=["private_encrypted"])
    return len(rows), lost


def sign(claims: Mapping[str, Any]) -> str:
    """Return the claims as a signed JWT (ES256, with ``kid``)."""
    key = key_ring.signing_key()
    header = {"alg": ALGORITHM, "kid": key.kid}
    return jwt.encode(header, dict(claims), key, algorithms=[ALGORITHM])


def verify(token: str) -> dict[str, Any] | None:
    """Return the claims of a JWT signed by this installation, None for any other text. Times are not checked."""
    try:
        return jwt.decode(token, _key_of, algorithms=[ALGORITHM]).claims
    except (JoseError, ValueError):
        # Everything joserfc raises about a malformed, foreign or forged token means the same: it is not ours.
        return None


def _key_of(recipient: Any) -> ECKey:
    key = key_ring.public_key(str(recipient.headers().get("kid")))
    if key is None:
        raise ValueError("unknown key id")
    return key


def jwks() -> dict[str, Any]:
    """The public keys as a JSON Web Key Set (RFC 7517)."""
    return {"keys": [key.as_dict(private=False) for key in key_ring.public_keys()]}
