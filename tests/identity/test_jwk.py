"""Key sets and key files in, the keys that may verify out."""

import base64
import json
import subprocess
import sys
from typing import Any

import pytest

from gateway.core.jwk import MAX_KEYS, MAX_TRIES, KeySet, is_key_material, read_key_file, read_key_set
from tests.identity.tokens import Key, PublicKey, curve, edwards, encoded, key_set, rsa, token
from tests.kit.program import ROOT

KEYS: list[tuple[PublicKey, set[str]]] = [
    (rsa(), {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    (curve("P-256"), {"ES256"}),
    (curve("P-384"), {"ES384"}),
    (curve("P-521"), {"ES512"}),
    (edwards("Ed25519"), {"EdDSA", "Ed25519"}),
    (edwards("Ed448"), {"EdDSA", "Ed448"}),
]


def verifies(keys: KeySet, text: str, algorithm: str, key_id: str | None = None) -> bool:
    message, _, signature = text.rpartition(".")
    return keys.verifies(key_id, algorithm, message.encode(), base64.urlsafe_b64decode(signature + "=="))


@pytest.mark.parametrize(("key", "algorithms"), KEYS)
def test_key_verifies_what_another_library_signed_with_it(key: PublicKey, algorithms: set[str]) -> None:
    sources = [read_key_set(key_set(key)), read_key_file(key_set(key)), read_key_file(key.as_pem(private=False))]
    sources.append(read_key_file(json.dumps(key.as_dict(private=False)).encode()))
    for keys in sources:
        assert keys.algorithms == algorithms
        for algorithm in algorithms:
            text = token(key, algorithm)
            assert verifies(keys, text, algorithm)
            assert not verifies(keys, f"{text[:40]}x{text[41:]}", algorithm)


def changed(key: Key, **members: Any) -> dict[str, Any]:
    return {name: value for name, value in (key.as_dict(private=False) | members).items() if value is not None}


BAD: dict[str, tuple[object, str]] = {
    "no object": ("key", "malformed"),
    "no type": ({}, "unknown type"),
    "type is a list": ({"kty": ["RSA"]}, "unknown type"),
    "secret": ({"kty": "oct", "k": encoded(b"x" * 64), "kid": "s"}, "secret"),
    "for encryption": (changed(rsa(), use="enc"), "other use"),
    "for other operations": (changed(rsa(), key_ops=["encrypt"]), "other use"),
    "operations are no list": (changed(rsa(), key_ops="verify"), "other use"),
    "for encryption, by its algorithm": (changed(rsa(), alg="RSA-OAEP"), "other algorithm"),
    "algorithm of a secret": (changed(rsa(), alg="HS256"), "other algorithm"),
    "algorithm of another type": (changed(rsa(), alg="ES256"), "other algorithm"),
    "no algorithm": (changed(rsa(), alg="none"), "other algorithm"),
    "1024 bits": (changed(rsa("short", 1024)), "wrong size"),
    "64 KiB of modulus": (changed(rsa(), n=encoded(b"\xff" * 65536)), "wrong size"),
    "long exponent": (changed(rsa(), e=encoded(b"\x01" + b"\0" * 30 + b"\x01")), "wrong size"),
    "exponent of 1": (changed(rsa(), e=encoded(b"\x01")), "malformed"),
    "modulus is a number": (changed(rsa(), n=65537), "malformed"),
    "modulus is missing": (changed(rsa(), n=None), "malformed"),
    "modulus is no base64": (changed(rsa(), n="ü" * 342), "malformed"),
    "point that is not on the curve": (changed(curve(), x=encoded(b"\x01" * 32)), "malformed"),
    "point of another length": (changed(curve(), x=encoded(b"\x01" * 31)), "malformed"),
    "unknown curve": (changed(curve(), crv="P-192"), "malformed"),
    "curve of coins": (changed(curve("secp256k1")), "unknown type"),
    "curve for key agreement": ({"kty": "OKP", "crv": "X25519", "x": encoded(b"\x09" * 32)}, "malformed"),
    "id is a number": (changed(rsa(), kid=7), "malformed"),
    "long id": (changed(rsa(), kid="x" * 5000), "malformed"),
}


def test_key_that_cannot_be_used_is_left_out_and_the_others_are_kept() -> None:
    for what, (bad, reason) in BAD.items():
        keys = read_key_set(json.dumps({"keys": [bad, changed(edwards())]}).encode())
        assert keys.ignored == {reason: 1}, what
        assert [key.id for key in keys.keys] == ["Ed25519"], what


def test_private_half_in_a_key_set_is_not_looked_at() -> None:
    keys = read_key_set(json.dumps({"keys": [rsa().as_dict(private=True)]}).encode())
    assert verifies(keys, token(rsa(), "RS256"), "RS256")
    assert not hasattr(keys.keys[0].material, "sign")


def test_set_is_bounded() -> None:
    keys = read_key_set(json.dumps({"keys": [changed(edwards())] * (MAX_KEYS + 5)}).encode())
    assert (len(keys.keys), keys.ignored) == (MAX_KEYS, {"too many": 5})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"<html>", b"\xff\xfe", b"[]", b"null", b"{}", b'{"keys": {}}', b'{"keys": 1}', b"[" * 200_000,
        b'{"keys":' * 20_000,
    ],
)  # fmt: skip
def test_what_is_no_key_set_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it is no JSON"):
        read_key_set(content)


def test_key_is_found_by_its_id_and_one_without_id_fits_every_token() -> None:
    named = read_key_set(key_set(rsa("a"), rsa("b")))
    text = token(rsa("b"), "RS256")
    assert [verifies(named, text, "RS256", kid) for kid in ("b", "a", "c", None)] == [True, False, False, True]
    assert [named.knows(kid) for kid in ("a", "c", None)] == [True, False, False]
    unnamed = read_key_set(key_set(rsa("b"), kid=None))
    assert [verifies(unnamed, text, "RS256", kid) for kid in ("b", "a", None)] == [True, True, True]


def test_signature_is_tried_with_a_few_keys_only() -> None:
    others = [edwards()] * MAX_TRIES
    own = type(edwards()).generate_key("Ed25519", {"kid": "own"})
    text = token(own, "EdDSA")
    assert not verifies(read_key_set(key_set(*others, own)), text, "EdDSA")
    assert verifies(read_key_set(key_set(*others[1:], own)), text, "EdDSA")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (rsa().as_pem(private=True), "private key"),
        (rsa("short", 1024).as_pem(private=False), "wrong size"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n", "0 keys"),
        (edwards().as_pem(private=False) * (MAX_TRIES + 1), "5 keys"),
        (b'{"keys": []}', "there is none"),
        (b'{"kty": "oct", "k": "AAAA"}', "1 secret"),
    ],
)
def test_key_file_without_a_usable_key_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_key_file(content)


def test_key_file_may_hold_the_key_before_and_the_next() -> None:
    keys = read_key_file(rsa("a").as_pem(private=False) + b"\n# next\n" + curve().as_pem(private=False))
    assert verifies(keys, token(rsa("a"), "RS256"), "RS256", "a")
    assert verifies(keys, token(curve(), "ES256"), "ES256", "P-256")


def test_program_without_tokens_does_not_load_cryptography() -> None:
    """It would start later, by a tenth of a second and more."""
    code = "import sys, gateway.cli, gateway.app, gateway.config; sys.exit('jwt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("secret", "is_key"),
    [
        (rsa().as_pem(private=False).decode(), True),
        (rsa().as_pem(private=False).decode().strip(), True),
        ("".join(rsa().as_pem(private=False).decode().splitlines()[1:-1]), True),
        (json.dumps(rsa().as_dict(private=False)), True),
        (key_set(rsa()).decode(), True),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2n0mTf me@here", True),
        ("0123456789abcdef0123456789abcdef", False),
        ("MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A", False),
    ],
)
def test_key_of_another_kind_is_no_secret(secret: str, is_key: bool) -> None:
    assert is_key_material(secret) is is_key
