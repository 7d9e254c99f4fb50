"""Keys that verify signatures: read from a JSON Web Key Set or from PEM, and found by their id.

Invariants:

- A key verifies only the algorithms of its own type, and of those only the one that it names. A public key is never a
  secret of HS256 and its like; nor does a set of public keys ever hold a secret.
- A size is checked before a number is made of its digits, so that reading a hostile set is cheap.
- Of a JWK only the public members of its type are looked at: no URL in it is followed, no certificate is believed.
- One bad key spoils no set: it is left out, and why is counted by a closed set of words.

This file takes long to import, because of the cryptography below it; import it only where tokens are configured.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

MAX_KEYS: Final = 100
"""Keys of one set; those after them are left out."""
MAX_TRIES: Final = 4
"""Keys that one signature is tried with, where its token does not say which it is."""
MAX_KEY_ID: Final = 512
"""Characters of a `kid`."""
RSA_BITS: Final = (2048, 8192)
"""The sizes of an RSA key. Below, it can be broken; above, one signature costs too much. Source: RFC 7518 3.3."""
MAX_EXPONENT: Final = 2**32
"""Above an RSA key's public exponent, which is 65537 nearly everywhere and decides what a signature costs."""

_ALGORITHMS: Final[Mapping[str, frozenset[str]]] = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA", "Ed25519"}),
    "Ed448": frozenset({"EdDSA", "Ed448"}),
}
"""The algorithms of a key's type or curve. Source: RFC 7518 3.1; RFC 8037 3.1, RFC 9864 2.2 for the newer names."""
_SECRET: Final = frozenset({"HS256", "HS384", "HS512"})
_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_READERS: Final[Mapping[str, Any]] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
_MAX_MEMBER: Final = 4 * (RSA_BITS[1] // 8) // 3 + 4
"""Characters of the longest number of a key, in base64."""
_SIGNATURES: Final = get_default_algorithms() | {"Ed25519": OKPAlgorithm(), "Ed448": OKPAlgorithm()}
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class VerifyingKey(NamedTuple):
    """One key.

    Attributes:
        id: its `kid`, None where it has none.
        algorithms: the algorithms whose signatures it verifies.
        material: the key itself, as the algorithms want it.
    """

    id: str | None
    algorithms: frozenset[str]
    material: Any

    def verifies(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether this is the signature of `message` by this key's owner."""
        if algorithm not in self.algorithms:
            return False
        return bool(_SIGNATURES[algorithm].verify(message, self.material, signature))


class KeySet:
    """The keys of one issuer.

    Args:
        keys: at most `MAX_KEYS`.
        ignored: how many keys of the source were left out, by reason.
    """

    def __init__(self, keys: Sequence[VerifyingKey], ignored: Mapping[str, int] | None = None) -> None:
        self.keys = tuple(keys)
        self.ignored = dict(ignored or {})

    @property
    def algorithms(self) -> frozenset[str]:
        """What these keys can verify together."""
        return frozenset[str]().union(*(key.algorithms for key in self.keys))

    def knows(self, key_id: str | None) -> bool:
        """Whether there is a key of just this id."""
        return key_id is not None and any(key.id == key_id for key in self.keys)

    def verifies(self, key_id: str | None, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether a key of this id made this signature; where there is none of this id, one of those without an id.

        Args:
            key_id: the token's `kid`; None for any key.
            algorithm, message, signature: as the token says.
        """
        fitting = [key for key in self.keys if algorithm in key.algorithms]
        if key_id is not None:
            named = [key for key in fitting if key.id == key_id]
            fitting = named if self.knows(key_id) else [key for key in fitting if key.id is None]
        return any(key.verifies(algorithm, message, signature) for key in fitting[:MAX_TRIES])


def secret_key(secret: str) -> KeySet:
    """A shared secret. It must be as long as RFC 7518 3.2 wants it, which `config/checks.py` sees to."""
    return KeySet([VerifyingKey(None, _SECRET, secret.encode())])


def read_key_file(content: bytes) -> KeySet:
    """The public keys or certificates of a PEM file, or a JWKS, or one JWK.

    Raises:
        ValueError: there is no key in it that can be used; says why, and quotes nothing.
    """
    if b"-----BEGIN" in content:
        return KeySet([_pem_key(match[1], match[0]) for match in _pem_blocks(content)])
    keys = read_key_set(content)
    if not keys.keys:
        raise ValueError(f"no key can be used: {_counted(keys.ignored) or 'there is none'}")
    return keys


def read_key_set(content: bytes) -> KeySet:
    """The usable keys of a JWKS, of which there may be none.

    Raises:
        ValueError: it is no JWKS.

    Source: RFC 7517 5; a key that cannot be used is left out, as it says.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    keys = data.get("keys", [data] if "kty" in data else None) if isinstance(data, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it is no JSON Web Key Set")
    usable, ignored = [], Counter[str]()
    for jwk in keys[:MAX_KEYS]:
        try:
            usable.append(_json_key(jwk))
        except _UnusableError as error:
            ignored[error.reason] += 1
    if len(keys) > MAX_KEYS:
        ignored["too many"] = len(keys) - MAX_KEYS
    return KeySet(usable, ignored)


class _UnusableError(ValueError):
    """A key that is left out.

    Args:
        reason: one of a closed set.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _json_key(jwk: object) -> VerifyingKey:
    """The key of a JWK. Source: RFC 7517 4, RFC 7518 6."""
    if not isinstance(jwk, dict):
        raise _UnusableError("malformed")
    kind = jwk.get("kty")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise _UnusableError("secret" if kind == "oct" else "unknown type")
    key_id, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID):
        raise _UnusableError("malformed")
    if jwk.get("use", "sig") != "sig" or not (isinstance(operations, list) and "verify" in operations):
        raise _UnusableError("other use")
    key = _public_key(key_id, _material(kind, {name: jwk.get(name) for name in _MEMBERS[kind]}))
    algorithm = jwk.get("alg")
    if algorithm is None:
        return key
    if not isinstance(algorithm, str) or algorithm not in key.algorithms:
        raise _UnusableError("other algorithm")
    return key._replace(algorithms=frozenset({algorithm}))


def _material(kind: str, members: Mapping[str, object]) -> object:
    if not all(isinstance(member, str) for member in members.values()):
        raise _UnusableError("malformed")
    if any(len(str(member)) > _MAX_MEMBER for member in members.values()):
        raise _UnusableError("wrong size")
    try:
        return _READERS[kind].from_jwk({"kty": kind, **members})
    except (InvalidKeyError, ValueError, TypeError, UnsupportedAlgorithm):
        raise _UnusableError("malformed") from None


def _public_key(key_id: str | None, material: object) -> VerifyingKey:
    """Raises _UnusableError: it is too weak, too costly, or of no type that is known here."""
    kind = ""
    if isinstance(material, RSAPublicKey):
        kind = "RSA"
        fits = RSA_BITS[0] <= material.key_size <= RSA_BITS[1] and material.public_numbers().e < MAX_EXPONENT
        if not fits:
            raise _UnusableError("wrong size")
    elif isinstance(material, EllipticCurvePublicKey):
        kind = _CURVES.get(material.curve.name, "")
    elif isinstance(material, Ed25519PublicKey | Ed448PublicKey):
        kind = "Ed25519" if isinstance(material, Ed25519PublicKey) else "Ed448"
    if not kind:
        raise _UnusableError("unknown type")
    return VerifyingKey(key_id, _ALGORITHMS[kind], material)


def _pem_blocks(content: bytes) -> list[re.Match[bytes]]:
    blocks = list(_PEM.finditer(content))
    if any(b"PRIVATE" in block[1] for block in blocks):
        raise ValueError("it holds a private key, which only the issuer may have; write the public key")
    if not 0 < len(blocks) <= MAX_TRIES:
        raise ValueError(f"it holds {len(blocks)} keys; allowed: 1 to {MAX_TRIES} PEM blocks, or a JWKS")
    return blocks


def _pem_key(label: bytes, block: bytes) -> VerifyingKey:
    try:
        if label == b"CERTIFICATE":
            return _public_key(None, x509.load_pem_x509_certificate(block).public_key())
        return _public_key(None, load_pem_public_key(block))
    except _UnusableError as error:
        raise ValueError(f"a key in it cannot be used: {error.reason}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("a PEM block in it is no public key and no certificate") from None


def _counted(ignored: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in ignored.items())


def is_key_material(secret: str) -> bool:
    """Whether a text that is to be a shared secret is a key of another sort, which others may know: PEM, an SSH key, a
    JWK, or what stands between the lines of a PEM block."""
    try:
        _SIGNATURES["HS256"].prepare_key(secret.strip())
    except InvalidKeyError:
        return True
    text = "".join(secret.split())
    for label in ("PUBLIC KEY", "CERTIFICATE"):
        try:
            _pem_key(label.encode(), f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode())
        except ValueError:
            continue
        return True
    return False
