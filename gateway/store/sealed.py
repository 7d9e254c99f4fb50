"""What lies in Redis so that only the nodes can read it, with a key that is not in Redis.

    version (1 byte) | name of the key (4 bytes) | nonce (12 bytes) | AES-256-GCM of the text, with its tag of 16 bytes

Every Redis key has an encryption key of its own, made of the secret and of its name by HKDF (RFC 5869). So a value that
somebody copies to another Redis key is worth nothing there, and random nonces are never too many for one key: NIST SP
800-38D 8.3 allows 2^32, and one Redis key is written a few times.

Nothing here raises for what it finds in Redis. What another secret sealed, or nobody, counts as absent: so a secret can
be changed, and what the old one sealed expires.
"""

import hashlib
import hmac
import os
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

VERSION: Final = b"\x01"
NONCE: Final = 12
TAG: Final = 16
KEY_NAME: Final = 4
KEPT: Final = 64
"""Ciphers that are kept made: the values of one Redis key are read together."""
OVERHEAD: Final = len(VERSION) + KEY_NAME + NONCE + TAG
"""Bytes by which what is sealed is longer than the text."""
_SALT: Final = b"sse-gateway store 1"


class Seal:
    """Seals and unseals with one secret.

    Args:
        secret: any text; it is as strong as this is hard to guess.
    """

    def __init__(self, secret: str) -> None:
        # One step of HKDF for what is slow, once; `_cipher` expands from it for each Redis key.
        self._root = HKDF(SHA256(), 32, salt=_SALT, info=b"root").derive(secret.encode())
        self._name = self._derived("key name")[:KEY_NAME]
        self._digests = self._derived("digests")
        self._cipher = lru_cache(KEPT)(lambda name: AESGCM(self._derived(f"seal {name}")))

    def seal(self, name: str, text: bytes) -> bytes:
        """The text, sealed for the Redis key of this name."""
        nonce = os.urandom(NONCE)
        return VERSION + self._name + nonce + self._cipher(name).encrypt(nonce, text, name.encode())

    def unseal(self, name: str, sealed: bytes) -> bytes | None:
        """The text that `seal` was given with this name; None for anything else."""
        head = len(VERSION) + KEY_NAME
        if len(sealed) < OVERHEAD or sealed[:head] != VERSION + self._name:
            return None
        try:
            return self._cipher(name).decrypt(sealed[head : head + NONCE], sealed[head + NONCE :], name.encode())
        except InvalidTag:
            return None

    def digest(self, *parts: str) -> str:
        """What stands for these parts in the name of a Redis key: 32 hexadecimal digits, the same on all nodes with
        this secret. Without it, nobody can try out which parts have a certain digest."""
        # The lengths keep ("a", "bc") apart from ("ab", "c").
        text = b"".join(len(part := each.encode("utf-8", "surrogatepass")).to_bytes(4) + part for each in parts)
        return hmac.digest(self._digests, text, hashlib.sha256).hex()[:32]

    def _derived(self, use: str) -> bytes:
        return HKDFExpand(SHA256(), 32, info=use.encode()).derive(self._root)
