"""Tokens in, principals and refusals out: what another library signs, and a table of attacks."""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwe, jwt
from joserfc.jws import JWSRegistry
from multidict import MultiDict

from gateway.config.model import Jwt
from gateway.core.credential import Facts, Presented, Refused, Verdict
from gateway.core.principal import Principal
from gateway.identity import jwt as module
from gateway.identity.jwt import LATEST, MAX_SUBJECT, MAX_TOKEN, JwtVerifier
from tests.identity.tokens import (
    AUDIENCE,
    ISSUER,
    SECRET,
    Key,
    claims,
    curve,
    edwards,
    encoded,
    key_set,
    rsa,
    shared,
    signed,
    token,
)

FACTS = Facts("192.0.2.7", MultiDict(), {}, {})
BY_SECRET = {"secret": SECRET, "algorithms": ["HS256"]}


def issuer(path: Any = None, key: bytes = b"", **settings: Any) -> Jwt:
    """An entry of `auth.jwt`; with `key`, by a key file in the folder `path`."""
    keys: dict[str, Any] = BY_SECRET
    if path is not None:
        (path / "keys").write_bytes(key)
        keys = {"key_file": str(path / "keys")}
    return Jwt.model_validate({"issuer": ISSUER, "audience": AUDIENCE} | keys | settings)


def verifier(*entries: Jwt) -> JwtVerifier:
    return JwtVerifier(entries or [issuer()], structlog.get_logger())


def judge(text: str, *entries: Jwt, now: float | None = None) -> Verdict:
    return verifier(*entries).verify(Presented(text, "header"), FACTS, time.time() if now is None else now)


def refusal(text: str, *entries: Jwt) -> str:
    """Why a token is refused; "" if it is let in."""
    verdict = judge(text, *entries)
    assert not isinstance(verdict, Principal) or verdict.kind == "jwt"
    return verdict.detail if isinstance(verdict, Refused) else "" if isinstance(verdict, Principal) else "not a token"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa(), "RS256"), (rsa(), "RS384"), (rsa(), "RS512"), (rsa(), "PS256"), (rsa(), "PS384"), (rsa(), "PS512"),
        (curve("P-256"), "ES256"), (curve("P-384"), "ES384"), (curve("P-521"), "ES512"), (edwards(), "EdDSA"),
        (edwards(), "Ed25519"), (edwards("Ed448"), "Ed448"),
    ],
)  # fmt: skip
def test_token_of_another_library_is_let_in(key: Key, algorithm: str, tmp_path: Any) -> None:
    entry = issuer(tmp_path, key_set(key), algorithms=[algorithm])
    assert refusal(token(key, algorithm), entry) == ""
    assert refusal(token(key, algorithm), entry.model_copy(update={"algorithms": ("HS256",)}))


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_token_signed_with_the_secret_is_let_in(algorithm: str) -> None:
    assert refusal(token(algorithm=algorithm), issuer(algorithms=[algorithm])) == ""
    assert refusal(token(algorithm=algorithm), issuer(algorithms=["HS256", "HS384", "HS512"])) == ""
    assert refusal(token(shared("x" * 64), algorithm), issuer(algorithms=[algorithm]))


def test_claims_give_the_principal() -> None:
    now = int(time.time())
    assert judge(token(exp=now + 60)) == Principal("jwt", f"{ISSUER}:alice", "default", frozenset({"stream"}), now + 90)
    entry = issuer(plan="pro", scopes=["publish"], subject_claim="email", leeway="0s")
    known = judge(token(email="a@b", scope="openid stream admin", plan="team", exp=now + 60), entry)
    assert known == Principal("jwt", f"{ISSUER}:a@b", "team", frozenset({"stream", "admin"}), now + 60)
    assert judge(token(email="a@b", exp=now + 60), entry) == Principal(
        "jwt", f"{ISSUER}:a@b", "pro", frozenset({"publish"}), now + 60
    )


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("stream", {"stream"}),
        (["stream", "publish", 7, None], {"stream", "publish"}),
        ("", set()), ([], set()), (None, set()), (7, set()), ({"stream": True}, set()), ("STREAM streams", set()),
        ([["stream"]], set()), ("stream,publish", set()),
    ],
)  # fmt: skip
def test_scopes_that_are_not_known_give_nothing(claim: object, scopes: set[str]) -> None:
    text = jwt.encode({"alg": "HS256"}, claims() | {"scope": claim}, shared())
    verdict = judge(text)
    assert isinstance(verdict, Principal)
    assert verdict.scopes == scopes
    assert refusal(text, issuer(scopes_claim=None)) == ""


PATHS: dict[str, Any] = {"subject_claim": "user.name", "plan_claim": "realm.plan", "scopes_claim": "realm_access.roles"}


@pytest.mark.parametrize(
    ("changes", "subject", "plan", "scopes"),
    [
        (
            {"user": {"name": "bob"}, "realm": {"plan": "pro"}, "realm_access": {"roles": ["admin", "x"]}},
            "bob", "pro", {"admin"},
        ),
        ({"user.name": "carol", "user": {"name": "bob"}, "realm.plan": "pro"}, "carol", "pro", {"stream"}),
        ({"user": {"name": "bob"}, "realm_access.roles": "publish", "realm_access": {"roles": "admin"}}, "bob",
         "default", {"publish"}),
        ({"user": {"name": "bob"}, "realm_access": {"roles": None}}, "bob", "default", set()),
        ({"user": {"name": "bob"}, "realm_access": ["roles"], "realm": "plan"}, "bob", "default", {"stream"}),
        ({"user": {"name": "bob"}, "realm_access": {"roles": {"admin": True}}}, "bob", "default", set()),
    ],
)  # fmt: skip
def test_claim_is_found_by_its_name_and_else_by_its_path(
    changes: dict[str, Any], subject: str, plan: str, scopes: set[str]
) -> None:
    """Objects in tokens, as of Keycloak. A claim whose name has dots, as of Auth0, comes first."""
    verdict = judge(token(**changes), issuer(**PATHS))
    assert isinstance(verdict, Principal)
    assert (verdict.id, verdict.plan, set(verdict.scopes)) == (f"{ISSUER}:{subject}", plan, scopes)


@pytest.mark.parametrize("user", [None, "bob", {}, {"name": 7}, {"name": {"name": "bob"}}, [{"name": "bob"}]])
def test_subject_at_the_end_of_a_path_has_to_be_there(user: object) -> None:
    assert "subject" in refusal(token(user=user), issuer(**PATHS))


@pytest.mark.parametrize("claim", [7, True, ["pro"], {}, ""])
def test_plan_that_is_no_name_is_no_plan(claim: object) -> None:
    verdict = judge(token(plan=claim), issuer(plan="pro"))
    assert isinstance(verdict, Principal)
    assert verdict.plan == ""  # which `plan_of` takes for `default`


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
def test_audience_may_be_one_of_several(audience: object) -> None:
    assert refusal(token(aud=audience)) == ""


def test_times_are_judged_with_leeway() -> None:
    now = 1_800_000_000.0
    entry, text = issuer(leeway="30s"), token(iat=now, nbf=now, exp=now + 60)
    edges = {-30.1: Refused, -30.0: Principal, 0.0: Principal, 89.9: Principal, 90.0: Refused}
    for offset, kind in edges.items():
        assert isinstance(judge(text, entry, now=now + offset), kind), offset
    expired = judge(text, entry, now=now + 90)
    assert isinstance(expired, Refused)
    assert expired.reason == "expired"
    assert isinstance(judge(token(iat=None, exp=now + 0.5), issuer(leeway="0s"), now=now + 0.4), Principal)


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example"},
    "issuer with a slash": {"iss": f"{ISSUER}/"},
    "issuer in upper case": {"iss": ISSUER.upper()},
    "no issuer": {"iss": None},
    "issuer is a list": {"iss": [ISSUER]},
    "issuer is an object": {"iss": {}},
    "another audience": {"aud": "billing"},
    "audience is longer": {"aud": f"{AUDIENCE}2"},
    "no audience": {"aud": None},
    "empty audience": {"aud": []},
    "audience is an object": {"aud": {AUDIENCE: 1}},
    "audience is nested": {"aud": [[AUDIENCE]]},
    "no end": {"exp": None},
    "end is text": {"exp": str(int(time.time()) + 36_000)},
    "end is true": {"exp": True},
    "end is in milliseconds": {"exp": int(time.time() + 60) * 1000},
    "end is a huge number": {"exp": 10**30},
    "end is just too late": {"exp": LATEST + 1},
    "end is negative": {"exp": -1},
    "end is a list": {"exp": [int(time.time()) + 36_000]},
    "ended": {"exp": int(time.time()) - 31},
    "not yet valid": {"nbf": int(time.time()) + 36_000},
    "begin is text": {"nbf": "0"},
    "begin is false": {"nbf": False},
    "issued in the future": {"iat": int(time.time()) + 36_000},
    "issued is text": {"iat": "yesterday"},
    "no subject": {"sub": None},
    "empty subject": {"sub": ""},
    "subject is a number": {"sub": 42},
    "subject is a list": {"sub": ["alice"]},
    "subject of 4 KiB": {"sub": "x" * 4096},
    "subject is just too long": {"sub": "x" * (MAX_SUBJECT + 1)},
    "subject with a line feed": {"sub": "alice\nbob"},
    "subject with NUL": {"sub": "alice\0"},
    "subject with an escape": {"sub": "\x1b[31malice"},
    "subject that turns the line": {"sub": "\u202eecila"},
    "subject with half a character": {"sub": "\ud800"},
}


def test_token_with_bad_claims_is_refused() -> None:
    for what, changes in BAD_CLAIMS.items():
        text = signed(json.dumps(claims(**changes)).encode())
        assert refusal(text) not in ("", "no key of its issuer made its signature"), what
    assert refusal(token(sub="x" * MAX_SUBJECT)) == ""
    assert refusal(token(sub="alice|käthe 你好")) == ""


LATER = int(time.time()) + 36_000
"""Long after the test, however long those before it take."""
GOOD = f'"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"alice"'
PAYLOADS: dict[str, bytes] = {
    "claim twice": f'{{{GOOD},"exp":{LATER},"sub":"bob"}}'.encode(),
    "claim twice, once escaped": f'{{{GOOD},"exp":{LATER},"s\\u0075b":"bob"}}'.encode(),
    "claim twice, deep inside": f'{{{GOOD},"exp":{LATER},"a":[{{"b":1,"b":2}}]}}'.encode(),
    "end twice": f'{{{GOOD},"exp":1,"exp":{LATER}}}'.encode(),
    "NaN": f'{{{GOOD},"exp":NaN}}'.encode(),
    "Infinity": f'{{{GOOD},"exp":Infinity}}'.encode(),
    "infinite float": f'{{{GOOD},"exp":1e999}}'.encode(),
    "large float": f'{{{GOOD},"exp":1e300}}'.encode(),
    "many digits": f'{{{GOOD},"exp":{"9" * 5000}}}'.encode(),
    "deep": f'{{{GOOD},"exp":{LATER},"a":{"[" * 5000}}}'.encode(),
    "deep and whole": f'{{{GOOD},"exp":{LATER},"a":{"[" * 2500}{"]" * 2500}}}'.encode(),
    "BOM": f'\ufeff{{{GOOD},"exp":{LATER}}}'.encode(),
    "Latin-1": f'{{{GOOD},"exp":{LATER},"n":"ü"}}'.encode("latin-1"),
    "UTF-16": f'{{{GOOD},"exp":{LATER}}}'.encode("utf-16"),
    "text behind": f'{{{GOOD},"exp":{LATER}}}x'.encode(),
    "single quotes": b"{'iss': 'x'}",
    "array": b"[]",
    "null": b"null",
    "text": b'"x"',
    "nothing but a space": b" ",
}


def test_payload_that_is_not_plain_json_is_refused() -> None:
    assert refusal(signed(f'{{{GOOD},"exp":{LATER}}}'.encode())) == ""
    for what, payload in PAYLOADS.items():
        if what == "deep and whole":  # Python may be able to read so much; what it says counts nowhere
            refusal(signed(payload))
            continue
        assert refusal(signed(payload)) not in ("", "no key of its issuer made its signature"), what


HEADERS: dict[str, Mapping[str, Any] | bytes] = {
    "critical extension": {"alg": "HS256", "crit": ["exp"], "exp": 1},
    "empty list of extensions": {"alg": "HS256", "crit": []},
    "payload not encoded": {"alg": "HS256", "b64": False, "crit": ["b64"]},
    "payload not encoded, and nobody says so": {"alg": "HS256", "b64": False},
    "payload encoded, by extension": {"alg": "HS256", "b64": True},
    "token inside": {"alg": "HS256", "cty": "JWT"},
    "encrypted": {"alg": "HS256", "enc": "A128GCM"},
    "compressed": {"alg": "HS256", "zip": "DEF"},
    "token for logging out": {"alg": "HS256", "typ": "logout+jwt"},
    "proof of possession": {"alg": "HS256", "typ": "dpop+jwt"},
    "type is a number": {"alg": "HS256", "typ": 7},
    "type is null": {"alg": "HS256", "typ": None},
    "id is a number": {"alg": "HS256", "kid": 7},
    "id is a list": {"alg": "HS256", "kid": ["a"]},
    "id is null": {"alg": "HS256", "kid": None},
    "id of 5 KB": {"alg": "HS256", "kid": "x" * 5000},
    "no algorithm": {"typ": "JWT"},
    "algorithm is null": {"alg": None},
    "algorithm is a list": {"alg": ["HS256"]},
    "algorithm in lower case": {"alg": "hs256"},
    "algorithm with a space": {"alg": "HS256 "},
    "algorithm twice": b'{"alg":"none","alg":"HS256"}',
    "array": b'["HS256"]',
    "nothing": b"{}",
}


def test_header_that_asks_for_more_is_refused() -> None:
    payload = json.dumps(claims()).encode()
    for what, header in HEADERS.items():
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        assert refusal(signed(payload, raw)) not in ("", "no key of its issuer made its signature"), what
    for kind in ("JWT", "jwt", "at+jwt", "application/at+jwt"):
        assert refusal(signed(payload, json.dumps({"alg": "HS256", "typ": kind}).encode())) == ""


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "none ", "", "NoNe\0"])
def test_token_without_a_signature_is_refused(alg: str) -> None:
    unsigned = f"{encoded({'alg': alg, 'typ': 'JWT'})}.{encoded(claims())}."
    for text in (unsigned, f"{unsigned}AA", f"{unsigned}{token().rpartition('.')[2]}", unsigned.rstrip(".")):
        assert refusal(text)


def test_public_key_is_no_secret(tmp_path: Any) -> None:
    """HS256 with whatever form of the public key an attacker can think of."""
    pem = rsa().as_pem(private=False)
    forms = [pem, pem.strip(), pem + b"\n", rsa().as_der(private=False), key_set(rsa())]
    forms += [json.dumps(rsa().as_dict(private=False)).encode(), b"".join(pem.splitlines()[1:-1]), b""]
    entries = [issuer(tmp_path, pem, algorithms=["RS256"])]
    for form in forms:
        message = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(claims())}"
        text = f"{message}.{encoded(hmac.digest(form, message.encode(), hashlib.sha256))}"
        assert refusal(text, *entries) == "its algorithm is not in the list"
        # Also where a careless list lets the algorithm pass.
        assert refusal(text, *(entry.model_copy(update={"algorithms": ("RS256", "HS256")}) for entry in entries))


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/etc/passwd", "https://evil.example/k", "' OR 1=1 --", "x\0", "rsa\n", "RSA", "", "{}"],
)
def test_key_id_only_finds_a_key_of_the_set(kid: str, tmp_path: Any) -> None:
    entry = issuer(tmp_path, key_set(rsa("rsa")), algorithms=["RS256"])
    assert refusal(token(rsa("evil"), "RS256", {"kid": kid}), entry) == "no key of its issuer made its signature"
    assert refusal(token(rsa("rsa"), "RS256", {"kid": kid}), entry) == "no key of its issuer made its signature"
    assert refusal(token(rsa("rsa"), "RS256"), entry) == ""


def test_key_that_a_token_brings_along_is_not_used(tmp_path: Any) -> None:
    entry = issuer(tmp_path, key_set(rsa("rsa")), algorithms=["RS256"])
    evil = rsa("evil")
    for header in (
        {"jwk": evil.as_dict(private=False)},
        {"x5c": ["MIIB"]},
        {"jku": "https://evil.example/jwks.json", "x5u": "https://evil.example/cert.pem"},
    ):
        message = f"{encoded({'alg': 'RS256', 'kid': 'rsa'} | header)}.{encoded(claims())}"
        text = _raw(evil, "RS256", message)
        assert refusal(text, entry) == "no key of its issuer made its signature"
        assert refusal(_raw(rsa("rsa"), "RS256", message), entry) == ""


def _raw(key: Key, algorithm: str, message: str) -> str:
    return f"{message}.{encoded(JWSRegistry.algorithms[algorithm].sign(message.encode(), key))}"


def test_ecdsa_signature_is_taken_in_one_form(tmp_path: Any) -> None:
    entry = issuer(tmp_path, key_set(curve()), algorithms=["ES256"])
    text = token(curve(), "ES256")
    message, _, _ = text.rpartition(".")
    raw = module._decoded(text.rpartition(".")[2])
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    zero, whole = b"\0" * 32, order.to_bytes(32, "big")
    forged = [zero + zero, whole + whole, zero + raw[32:], raw[:32] + zero, b"\xff" * 64]
    other = [encode_dss_signature(r, s), raw + b"\0", b"\0" + raw, raw[:63], raw[:32], b"\0"]
    for signature in (*forged, *other):
        assert refusal(f"{message}.{encoded(signature)}", entry) == "no key of its issuer made its signature"
    assert refusal(text, entry) == ""


def test_key_of_another_curve_or_type_verifies_nothing(tmp_path: Any) -> None:
    entry = issuer(tmp_path, key_set(curve("P-384"), rsa("rsa")), algorithms=["ES384", "RS256"])
    for key, algorithm, kid in ((curve("P-384"), "ES384", "rsa"), (rsa("rsa"), "RS256", "P-384")):
        assert refusal(token(key, algorithm, {"kid": kid}), entry) == "no key of its issuer made its signature"


def spellings(text: str) -> dict[str, str]:
    head, body, signature = text.split(".")
    return {
        "empty signature": f"{head}.{body}.",
        "empty payload": f"{head}..{signature}",
        "empty header": f".{body}.{signature}",
        "dots": "..",
        "truncated": text[:-4],
        "longer": f"{text}AAAA",
        "fourth part": f"{text}.AAAA",
        "empty fourth part": f"{text}.",
        "space inside": f"{head} .{body}.{signature}",
        "line feed at the end": f"{text}\n",
        "tab": f"{head}.\t{body}.{signature}",
        "padded": f"{head}==.{body}.{signature}",
        "padded signature": f"{text}=",
        "base64 of another alphabet": f"{head}.{body}.{signature[:-1]}+",
        "character that is skipped": f"{head}.{body}.{signature[:5]}!{signature[5:]}",
        "percent-encoded": f"{head}%2E{body}.{signature}.",
        "digits of another script": f"{head}.{body}.{signature[:-1]}１",
        "half a character": f"{head}.{body}.\ud800",
        "bits left over": f"{head}.{body}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",
        "swapped parts": f"{body}.{head}.{signature}",
        "with its scheme": f"Bearer {text}",
        "JSON": json.dumps({"payload": body, "protected": head, "signature": signature}) + "..",
    }


def test_token_has_one_spelling() -> None:
    text = token()
    assert refusal(text) == ""
    for what, spelling in spellings(text).items():
        assert refusal(spelling), what


def test_encrypted_token_is_refused() -> None:
    key = shared(b"k" * 16)
    text = jwe.encrypt_compact({"alg": "dir", "enc": "A128GCM"}, json.dumps(claims()).encode(), key)
    assert refusal(text) == "it has not three parts"


def test_large_token_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = token(groups="x" * 4800)
    assert 6000 < len(fits) < MAX_TOKEN
    assert refusal(fits) == ""
    monkeypatch.setattr(module, "_decoded", None)
    assert refusal(f"{token()}{'A' * 1_000_000}") == f"it is longer than {MAX_TOKEN} characters"


@pytest.mark.parametrize("secret", ["", "k", "web-key", "a.b", "sk-1.2"])
def test_other_credential_is_left_to_others(secret: str) -> None:
    assert judge(secret) is None
    assert verifier().verify(None, FACTS, time.time()) is None


def test_issuers_of_one_name_differ_by_audience(tmp_path: Any) -> None:
    entries = [issuer(), issuer(tmp_path, key_set(rsa()), audience="api", algorithms=["RS256"])]
    assert refusal(token(), *entries) == ""
    assert refusal(token(rsa(), "RS256", aud="api"), *entries) == ""
    assert refusal(token(rsa(), "RS256", aud=["api", AUDIENCE]), *entries) == ""
    assert refusal(token(rsa(), "RS256"), *entries)
    assert refusal(token(aud="api"), *entries)


def test_subject_makes_no_id_of_another_issuer() -> None:
    """`https://id` with the subject `8443:x`, and `https://id:8443` with `x`, would be written alike."""
    entries = [issuer(issuer="https://id"), issuer(issuer="https://id:8443")]
    assert refusal(token(iss="https://id:8443", sub="x"), *entries) == ""
    assert refusal(token(iss="https://id", sub="8443:x"), *entries) == "its subject could be taken for another issuer's"
    assert refusal(token(iss="https://id", sub="urn:x"), *entries) == ""


def test_token_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgotten when it has expired; a bad one is never remembered."""
    known, text, now = verifier(), token(), time.time()
    first = known.verify(Presented(text, "header"), FACTS, now)
    for bad in (f"{text[:-2]}AA", token(aud="other"), "a.b.c"):
        assert isinstance(known.verify(Presented(bad, "header"), FACTS, now), Refused)
    assert len(known._remembered) == 1
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_token", None)
        assert known.verify(Presented(text, "query"), FACTS, now + 1) == first
    assert isinstance(known.verify(Presented(text, "header"), FACTS, now + 3600), Refused)
    assert not known._remembered


def test_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    known, now = verifier(), time.time()
    texts = [token(sub=f"user-{number}") for number in range(5)]
    for text in (*texts[:3], texts[0], *texts[3:]):  # the one that came again stays
        assert isinstance(known.verify(Presented(text, "header"), FACTS, now), Principal)
    assert {remembered.principal.id.rpartition("-")[2] for remembered in known._remembered.values()} == {"0", "3", "4"}
