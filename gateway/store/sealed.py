"""What lies in Redis so that only the nodes can read it, with a key that is not in Redis.

    version (1 byte) | name of the secret (4 bytes) | salt (8 bytes) | nonce (12 bytes)
                     | AES-256-GCM of the text, with its tag of 16 bytes

A process seals everything with one key, made of the secret and of a random salt of its own by HKDF (RFC 5869); the salt
tells the others which. So random nonces are never too many for a key: NIST SP 800-38D 8.3 allows 2^32. The name of the
Redis key is authenticated along with the text: a value that somebody copies to another one is worth nothing there.

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

VERSION: Final = b"\x02"
NAME: Final = 4
SALT: Final = 8
NONCE: Final = 12
TAG: Final = 16
KEPT: Final = 64
"""Processes whose keys are kept made."""
OVERHEAD: Final = len(VERSION) + NAME + SALT + NONCE + TAG
"""Bytes by which what is sealed is longer than the text."""
_SALT: Final = b"sse-gateway store 1"


class Seal:
    """Seals and unseals with one secret.

    Args:
        secret: any text; it is as strong as this is hard to guess.
    """

    def __init__(self, secret: str) -> None:
        self._root = HKDF(SHA256(), 32, salt=_SALT, info=b"root").derive(secret.encode())
        self._digests = self._derived(b"digests")
        self._cipher = lru_cache(KEPT)(lambda salt: AESGCM(self._derived(b"seal " + salt)))
        salt = os.urandom(SALT)
        self._head = VERSION + self._derived(b"name")[:NAME] + salt
        self._own = self._cipher(salt)

    def seal(self, name: str, text: bytes) -> bytes:
        """The text, sealed for the Redis key of this name."""
        nonce = os.urandom(NONCE)
        return self._head + nonce + self._own.encrypt(nonce, text, name.encode())

    def unseal(self, name: str, sealed: bytes) -> bytes | None:
        """The text that `seal` was given with this name; None for anything else."""
        head = len(self._head)
        salted = head - SALT
        if len(sealed) < OVERHEAD or sealed[:salted] != self._head[:salted]:
            return None
        cipher, nonce = self._cipher(sealed[salted:head]), sealed[head : head + NONCE]
        try:
            return cipher.decrypt(nonce, sealed[head + NONCE :], name.encode())
        except InvalidTag:
            return None

    def digest(self, *parts: str) -> str:
        """What stands for these parts in the name of a Redis key: 32 hexadecimal digits, the same on all nodes with
        this secret. Without it, nobody can try out which parts have a certain digest."""
        # The lengths keep ("a", "bc") apart from ("ab", "c").
        text = b"".join(len(part := each.encode("utf-8", "surrogatepass")).to_bytes(4) + part for each in parts)
        return hmac.digest(self._digests, text, hashlib.sha256).hex()[:32]

    def _derived(self, use: bytes) -> bytes:
        return HKDFExpand(SHA256(), 32, info=use).derive(self._root)
