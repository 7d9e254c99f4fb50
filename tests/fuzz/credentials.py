# ruff: noqa: E501, PT017 - inputs are best read whole; what an error says is checked for every input
"""What clients, issuers and applications send to say who somebody is: tokens, key sets, tickets, keys, cookies, the
answers of `auth.forward`; and what proxies write of addresses."""

import hashlib
import hmac
import ipaddress
import json
import random
import re
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qsl

import structlog
from multidict import CIMultiDict

from gateway.config.keys import KeyFile
from gateway.config.model import Forward, Jwt
from gateway.core.cookies import clean_cookies, strip_cookies
from gateway.core.credential import (
    IPV6_PREFIX,
    MAX_PEER,
    Facts,
    Key,
    Keyring,
    Presented,
    Refused,
    address_key,
    client_address,
    cookie_allowed,
    digest,
    find_credential,
    is_trusted,
    strip_query,
)
from gateway.core.jwk import MAX_KEY_ID, MAX_KEYS, MAX_TRIES, RSA_BITS, is_key_material, read_key_file, read_key_set
from gateway.core.principal import Principal
from gateway.identity import forward
from gateway.identity.jwt import MAX_SUBJECT, SCOPES, JwtVerifier
from gateway.identity.tickets import SHARE, Ticket, Tickets, is_ticket
from tests.fuzz.keys import NOW, OTHER_KEYS, PEMS, PUBLIC_KEYS, TOKENS
from tests.fuzz.target import Target
from tests.identity.tokens import AUDIENCE, ISSUER, SECRET, encoded

FACTS: Final = Facts("192.0.2.7", CIMultiDict(), {}, {})
OTHER_ISSUER: Final = "https://keys.example.com"
BAD_TOKENS: Final = frozenset({"expired", "invalid"})


# -- tokens ------------------------------------------------------------------------------------------------------------

HEAD: Final = b'{"alg":"HS256","typ":"JWT","kid":"rsa"}'
CLAIMS: Final = (
    b'{"iss":"https://id.example.com","aud":"chat","sub":"alice","exp":%d,"nbf":%d,"scope":"stream publish"}'
)
SIGNED: Final = (
    HEAD + b"\n" + CLAIMS % (NOW + 60, NOW - 60),
    b'{"alg":"HS256"}\n'
    b'{"iss":"https://id.example.com","aud":["a","chat"],"sub":"b","exp":1800000060.5,"plan":"p","scope":["stream","x"]}',
)
"""A header and claims, to be signed as they are after they were changed."""


@cache
def verifier() -> JwtVerifier:
    """Knows an issuer by a secret, and one by public keys."""
    by_secret = {"issuer": ISSUER, "audience": AUDIENCE, "secret": SECRET, "algorithms": ["HS256"]}
    first = Jwt.model_validate(by_secret)
    by_keys = {"issuer": OTHER_ISSUER, "secret": None, "key_file": KeyFile("keys", PUBLIC_KEYS)}
    second = first.model_copy(update=by_keys | {"algorithms": ("RS256", "ES256", "EdDSA")})
    return JwtVerifier([first, second], structlog.get_logger())


def check_token(data: bytes, rng: random.Random) -> Hashable:
    """A token whose bytes were changed is refused with one of two words, and nothing is raised."""
    text = data.decode("utf-8", "surrogateescape")
    verdict = verifier().verify(Presented(text, "header"), FACTS, NOW)
    if isinstance(verdict, Principal):
        assert data in TOKENS, "a token that nobody signed"
        return "good"
    return _refused(verdict)


def _refused(verdict: object) -> Hashable:
    assert verdict is None or (isinstance(verdict, Refused) and verdict.reason in BAD_TOKENS), verdict
    return verdict.detail if isinstance(verdict, Refused) else None


def check_claims(data: bytes, rng: random.Random) -> Hashable:
    """A token with a good signature is let in only if its header and claims say, once, what they have to say."""
    header, _, payload = data.partition(b"\n")
    secret = SECRET.encode() if rng.random() < 0.9 else PEMS[1]
    text = _signed(header, payload, secret)
    verdict = verifier().verify(Presented(text, "query"), FACTS, NOW)
    if not isinstance(verdict, Principal):
        return _refused(verdict)
    assert secret == SECRET.encode(), "signed with a public key"
    said, claims = _read_once(header), _read_once(payload)
    assert said["alg"] == "HS256"
    assert not said.keys() & {"crit", "b64", "cty", "enc", "zip"}
    assert claims["iss"] == ISSUER
    assert claims["aud"] == AUDIENCE or AUDIENCE in claims["aud"]
    assert isinstance(claims["sub"], str)
    assert 0 < len(claims["sub"]) <= MAX_SUBJECT
    assert NOW < claims["exp"] + 30 == verdict.expires
    assert all(claims.get(name, 0) <= NOW + 30 for name in ("nbf", "iat"))
    assert (verdict.kind, verdict.id) == ("jwt", f"{ISSUER}:{claims['sub']}")
    assert verdict.scopes <= SCOPES
    assert verdict.id.isprintable()
    return "good", len(verdict.scopes), verdict.plan == "default"


def _signed(header: bytes, payload: bytes, secret: bytes) -> str:
    message = f"{encoded(header)}.{encoded(payload)}"
    return f"{message}.{encoded(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"


def _read_once(content: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), "a member occurs twice"
        return dict(pairs)

    value = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    assert isinstance(value, dict)
    return value


# -- key sets ----------------------------------------------------------------------------------------------------------


KEY_SETS: Final = (
    PUBLIC_KEYS,
    OTHER_KEYS,
    b'{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}',
    b'{"kty":"RSA","n":"AQAB","e":"AQAB","use":"sig","alg":"RS256","x5u":"http://x"}',
    *PEMS,
)


def check_keys(data: bytes, rng: random.Random) -> Hashable:
    """Keys that may verify, or the one error; never a secret, a weak key, nor one that takes a foreign signature."""
    found = []
    for read in (read_key_set, read_key_file):
        try:
            keys = read(data)
        except ValueError as error:
            assert len(str(error)) < 200
            found.append(str(error))
            continue
        assert len(keys.keys) <= (MAX_KEYS if b"-----BEGIN" not in data else MAX_TRIES)
        for key in keys.keys:
            assert not any(algorithm.startswith("HS") or algorithm == "none" for algorithm in key.algorithms)
            assert key.id is None or len(key.id) <= MAX_KEY_ID
            size = getattr(key.material, "key_size", None)
            assert "RS256" not in key.algorithms or (size is not None and RSA_BITS[0] <= size <= RSA_BITS[1])
            for algorithm in key.algorithms:
                assert not keys.verifies(key.id, algorithm, b"message", data[:64])
        found.append(str(sorted(keys.algorithms)))
    if rng.random() < 0.1:
        is_key_material(data.decode("utf-8", "replace"))
    return tuple(found)


# -- tickets -----------------------------------------------------------------------------------------------------------

LIMIT: Final = 8
PRINCIPALS: Final = tuple(
    Principal("key", name, "default", frozenset({"stream"}), expires)
    for name, expires in (("a", None), ("b", None), ("soon", 40.0), ("c", None))
)
PLACES: Final = tuple((route, address) for route in ("/chat", "/other") for address in ("192.0.2.1", "192.0.2.2"))


class _Played:
    """A store of tickets, and all that happened to them, told apart from how the store keeps it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.streams: set[str] = set()
        self.store = Tickets(None, lambda stream_id, owner: stream_id in self.streams, LIMIT)
        self.issued: list[str] = []
        self.whose: dict[str, Principal] = {}
        self.started: dict[str, str] = {}
        self.places: dict[str, tuple[str, str]] = {}
        self.dead: set[str] = set()

    def redeem(self, text: str, choice: int) -> Ticket | None:
        """Redeems it, and starts its stream if it can start one; asserts that it gives no more than it may."""
        route, address = PLACES[choice % 4]
        proves = choice & 4 != 0
        ticket = self.store.redeem(text, route, address, self.now, lambda stream_id: proves, starts=choice & 8 == 0)
        if ticket is None:
            return None
        assert text in self.whose, "a ticket that nobody issued"
        assert text not in self.dead, "a ticket that was dead"
        assert ticket.principal is self.whose[text]
        assert ticket.principal.expires is None or self.now < ticket.principal.expires
        assert self.places.setdefault(text, (route, address)) == (route, address), "at another place"
        if self.store.starts(ticket):
            assert text not in self.started, "a second stream"
            assert choice & 8 == 0, "a stream where none can be started"
            self.started[text] = f"stream {len(self.started)}"
            self.streams.add(self.started[text])
            self.store.use(ticket, self.started[text], 10.0, self.now)
        elif text in self.started:
            assert ticket.stream_id == self.started[text], "another stream"
        else:
            self.store.use(ticket, "named", 10.0, self.now)
        assert ticket.stream_id in self.streams
        return ticket

    def change(self, what: int, choice: int) -> None:
        """One thing that happens elsewhere."""
        if what == 0:
            self.now += choice / 8
        elif what == 1:
            principal = PRINCIPALS[choice % 4]
            named = "named" if choice & 64 else ""
            text = self.store.issue(principal, 10.0, self.now, named)
            self.issued.append(text)
            self.whose[text] = principal
        elif what == 2:
            principal = PRINCIPALS[choice % 4]
            self.store.revoke(str(principal))
            self.dead |= {text for text, whose in self.whose.items() if whose is principal}
        elif what == 3:
            gone = sorted(self.streams)[choice % len(self.streams) :][:1] if self.streams else []
            self.dead |= {text for text, stream in self.started.items() if stream in gone}
            self.streams -= set(gone)
        elif what == 4:
            self.streams.add("named")


def check_tickets(data: bytes, rng: random.Random) -> Hashable:
    """Two bytes are one thing that happens; whatever happens, a ticket starts one stream, once, in one place, in time."""
    played, seen = _Played(), set[Hashable]()
    for what, choice in zip(data[::2], data[1::2], strict=False):
        if what % 8 < 5 or not played.issued:
            played.change(what % 8, choice)
        else:
            text = played.issued[-1 - choice % min(len(played.issued), 4)]
            if what % 8 == 5:
                text = text[:31] + chr(choice)
            ticket = played.redeem(text, choice >> 2)
            seen.add((what % 8, ticket is not None))
            if ticket is not None and choice & 128:
                ticket.read_out = True
        assert len(played.store) <= LIMIT
        held = [str(principal) for principal in played.store.principals]
        assert len(set(held)) == len(held)
    text = data.decode("utf-8", "surrogateescape")
    assert played.store.redeem(text, "/chat", "192.0.2.1", played.now, lambda _: True) is None
    assert not is_ticket(text) or text.isascii()
    return tuple(sorted(map(str, seen)))


TICKETS: Final = (
    bytes((1, 0, 6, 0, 6, 0, 0, 80, 6, 0, 6, 16)),
    bytes((4, 0, 1, 64, 7, 32, 7, 0, 3, 0, 7, 32)),
    bytes((1, 0, 1, 1, 1, 2, 1, 3, 2, 1, 6, 0, 6, 1, 6, 2)),
    bytes((1, 0, 0, 255, 6, 0)),
    bytes(SHARE for _ in range(40)),
)


# -- the answers of an application -------------------------------------------------------------------------------------

ANSWERS: Final = (
    b'{"id":"alice","plan":"default","scopes":["stream","publish"],"expires_in":30}',
    b'{"id":"a b","scopes":"stream admin other","expires_in":0.5}',
    b'{"id":"x","expires_in":0}',
    b"[]",
)
TTL: Final = 30.0


def check_forward(data: bytes, rng: random.Random) -> Hashable:
    """A user for a bounded time, a refusal, or the error that is one for `auth_unavailable`."""
    try:
        said = forward._object(data)
        answer = forward._allowed(said, TTL)
    except ValueError as error:
        assert len(str(error)) < 200
        return str(error)
    if not isinstance(answer, forward.Allowed):
        assert said["expires_in"] == 0
        return answer
    assert answer.id == said["id"]
    assert 0 < len(answer.id) <= forward.MAX_ID
    assert answer.id.isprintable()
    assert answer.id == answer.id.strip()
    assert isinstance(answer.plan, str)
    assert answer.scopes <= forward.SCOPES
    assert 0 < answer.lifetime <= TTL
    return answer.scopes


def check_asked(data: bytes, rng: random.Random) -> Hashable:
    """What the application is asked with can be sent as it is, and holds nothing but what is named."""
    text = data.decode("latin-1")
    headers = CIMultiDict({"Cookie": text, "Authorization": text, "X-Other": "secret-of-others"})
    if rng.random() < 0.5:
        headers["Sec-Fetch-Site"] = "same-origin"
    elif rng.random() < 0.5:
        headers["Origin"] = text
    presented = Presented(text, "query") if rng.random() < 0.5 else None
    asked = asker()._carried(presented, Facts("192.0.2.7", headers, {}, {}))
    if asked is None:
        return None
    sent = dict(asked.headers)
    assert sent.keys() <= {"cookie", "authorization"}
    assert all(re.fullmatch(r"[\x20-\x7e]+", value) for value in sent.values())
    assert "cookie" not in sent or headers.get("Sec-Fetch-Site") == "same-origin"
    assert len(asked.hash()) == 32
    return tuple(sent)


@cache
def asker() -> forward.Forward:
    """Reads what a request carries; it is never let ask."""
    settings = Forward.model_validate(
        {"url": "http://127.0.0.1:9/", "cookies": ["session"], "headers": ["authorization"]}
    )
    nothing: Any = None
    return forward.Forward(settings, frozenset({"https://app.example.com"}), nothing, nothing, nothing)


# -- keys, cookies, queries --------------------------------------------------------------------------------------------

KEYRING: Final = Keyring([Key("web", bytes.fromhex(digest("secret-key")), "default", frozenset({"stream"}))])
CREDENTIALS: Final = (
    b"Bearer secret-key",
    b"secret-key",
    b"bearer  secret-key ",
    b"token=secret-key&a=%41",
    b"a=b; c=d",
    b'c="x y"; d=1; c=2',
    b"https://app.example.com",
)


def check_credential(data: bytes, rng: random.Random) -> Hashable:
    """Nothing but the key is taken for it, wherever it stands; and a query without it does not have it."""
    text = data.decode("latin-1")
    found = find_credential(("header", "cookie", "query"), text, {"c": text}, {"token": text}, "c", "token")
    for secret in (text, data.decode("utf-8", "surrogateescape"), *([found.secret] if found else [])):
        assert (KEYRING.match(secret, NOW) is not None) == (secret == "secret-key")
    left = strip_query(f"token=a&{text}&%74oken=b", ("token",))
    assert not any(_decoded_name(part) == "token" for part in left.split("&")), left
    assert not cookie_allowed(text, None, ("https://app.example.com",)) or text == "https://app.example.com"
    return found and found.source


def _decoded_name(part: str) -> str:
    pairs = parse_qsl(part, keep_blank_values=True)
    return pairs[0][0] if pairs else ""


COOKIES: Final = (
    b"c=1; a=b",
    b'a="c=2; d"; c=3',
    b"a=b, c=4",
    b'c="x\\"y"; e=f',
    b"$Version=1; c=5; $Path=/",
    b"a=\xc3\xa9; c =6;c= 7",
)


def check_cookies(data: bytes, rng: random.Random) -> Hashable:
    """What is left of a header has no cookie of that name for any program that we know; and what is read is read so by
    the plainest of them."""
    text = data.decode("latin-1")
    left = strip_cookies(text, ["c"])
    for name, reader in READERS.items():
        assert "c" not in reader(left), (name, left)
    clean = clean_cookies(text, ["c"])
    if clean:
        assert READERS["plain"](text).get("c", "").strip('"') == clean["c"].strip('"'), text
    return bool(clean), left == text


def _plain_cookies(header: str) -> dict[str, str]:
    pairs = [piece.strip(" \t").partition("=") for piece in header.split(";")]
    return {name.strip(" \t"): value.strip(" \t") for name, equals, value in pairs if equals}


def _python_cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def _eager_cookies(header: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|[;,\s])\s*([^=;,\s\"]+)\s*=([^;,]*)", header))


READERS: Final[Mapping[str, Callable[[str], Mapping[str, str]]]] = {
    "plain": _plain_cookies,
    "Python": _python_cookies,
    "at commas and blanks too": _eager_cookies,
}

# -- addresses ---------------------------------------------------------------------------------------------------------

PROXIES: Final = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
PROXY, CLIENT = "10.0.0.1", "192.0.2.9"
HOPS: Final = (
    b"10.0.0.1, [::1]:80, 1.2.3.4:5",
    b'for=1.2.3.4;proto=http;by="[fd00::1]:80", for="[2001:db8::1]:4711"',
    b'for="_hidden"; host="a\\"b", for=unknown',
    b"::ffff:10.0.0.2, fe80::1%eth0, 10.0.0.3",
    b", ,, 10.0.0.9",
)


def check_addresses(data: bytes, rng: random.Random) -> Hashable:
    """A client chooses no address: whatever it writes, what the proxy adds behind it counts, or the proxy itself does."""
    text = data.decode("latin-1")
    assert client_address(CLIENT, text, PROXIES, [text]) == CLIENT, "from somebody who is no proxy"
    assert client_address(PROXY, f"{text}, {CLIENT}", PROXIES) == CLIENT
    assert client_address(PROXY, f"{text}, {CLIENT}, 10.0.0.7", PROXIES) == CLIENT
    assert client_address(PROXY, None, PROXIES, [text, f"for={CLIENT}"]) == CLIENT, "in a line of its own"
    assert client_address(PROXY, None, PROXIES, [f"{text}, for={CLIENT}"]) in (CLIENT, PROXY)
    assert client_address(PROXY, CLIENT, PROXIES, [text]) in (CLIENT, PROXY), "by the other header"
    assert client_address(PROXY, f"{text}", PROXIES, [f"for={CLIENT}"]) in (CLIENT, PROXY)
    # Alone it may name anybody, as a proxy that checks nothing would; but it names an address.
    named = client_address(PROXY, text, PROXIES)
    ipaddress.ip_address(named)
    ipaddress.ip_address(client_address(PROXY, None, PROXIES, [text]))
    key = address_key(text)
    assert len(key) <= max(MAX_PEER, 49)
    assert not is_trusted(text, ()), "nobody is trusted"
    assert ":" not in named or address_key(named).endswith(f"/{IPV6_PREFIX}")
    return named == PROXY, "/" in key


def targets() -> dict[str, Target]:
    """By name."""
    return {
        "token": Target(TOKENS, check_token, 10),
        "claims": Target(SIGNED, check_claims, 10),
        "keys": Target(KEY_SETS, check_keys, 3),
        "tickets": Target(TICKETS, check_tickets, 4),
        "forward": Target(ANSWERS, check_forward, 12),
        "asked": Target((*COOKIES, *CREDENTIALS, b"session=abc", b"Basic YTpi", b"Bearer a.b.c"), check_asked, 10),
        "credential": Target(CREDENTIALS, check_credential, 10),
        "cookies": Target(COOKIES, check_cookies, 8),
        "addresses": Target(HOPS, check_addresses, 5),
    }
