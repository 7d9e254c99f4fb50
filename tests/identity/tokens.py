"""An issuer of tokens for tests, made with a library that the program does not use."""

import base64
import json
import time
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

ISSUER = "https://id.example.com"
AUDIENCE = "chat"
SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

PublicKey = RSAKey | ECKey | OKPKey
Key = PublicKey | OctKey


@cache
def rsa(name: str = "rsa", bits: int = 2048) -> RSAKey:
    """An RSA key; the name is its `kid`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key that is too short, as some are meant to be
        return RSAKey.generate_key(bits, {"kid": name})


@cache
def curve(name: str = "P-256") -> ECKey:
    """A key on this curve, which is its `kid` too."""
    return ECKey.generate_key(name, {"kid": name})


@cache
def edwards(name: Literal["Ed25519", "Ed448"] = "Ed25519") -> OKPKey:
    """A key on this curve, which is its `kid` too."""
    return OKPKey.generate_key(name, {"kid": name})


def shared(secret: str | bytes = SECRET) -> OctKey:
    """A shared secret."""
    return OctKey.import_key(secret)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that are good for a minute; None takes one away."""
    now = int(time.time())
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 60} | changes
    return {name: value for name, value in all_claims.items() if value is not None}


def token(
    key: Key | None = None, algorithm: str = "HS256", header: Mapping[str, Any] | None = None, **changes: Any
) -> str:
    """A token, signed with this key."""
    key = shared() if key is None else key
    named = {"kid": key.kid} if key.kid else {}
    everything = {"alg": algorithm} | named | dict(header or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EdDSA is deprecated, but used
        return jwt.encode(everything, claims(**changes), key, algorithms=[algorithm])


def signed(payload: bytes, header: bytes | None = None, secret: str = SECRET) -> str:
    """A token of exactly these bytes, with a good HS256 signature."""
    head = b'{"alg":"HS256"}' if header is None else header
    message = f"{encoded(head)}.{encoded(payload)}"
    signature = jws.JWSRegistry.algorithms["HS256"].sign(message.encode(), shared(secret))
    return f"{message}.{encoded(signature)}"


def encoded(content: bytes | Mapping[str, Any]) -> str:
    """Base64url without padding."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def key_set(*keys: Key, **members: Any) -> bytes:
    """A JWKS of these keys' public halves, each with further members."""
    return json.dumps({"keys": [dict(key.as_dict(private=False)) | members for key in keys]}).encode()
