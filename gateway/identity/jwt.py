"""JSON Web Tokens as credentials: the verifier of `auth.jwt`.

    a credential with two dots --> read --> whose is it (`iss`)? --> claims good? --> signed by a key of the issuer?
                                    |              |                     |             |            |          |
                                    |no            |nobody's             |no           |yes         |no        |no keys
                                    v              v                     v             v            v          v yet
                                 refused        refused               refused    the principal,  refused    come back
                                                                                  remembered

A token that names a key which is not in the set waits for the set to be fetched again, where that may be done. So the
first token after a rotation is good: an EventSource that is refused once never comes again.
Claims come before the signature because they are cheaper; all refusals look the same to the client.

Invariants:

- Algorithms, keys and issuers come from the configuration. Of a token's header only `alg` and `kid` are used: `alg`
  must be in the issuer's list, `kid` only finds a key of the set that the issuer has. `jku`, `x5u`, `jwk` and `x5c`
  are never looked at.
- What a token says in two ways says nothing: a member that occurs twice, base64 with padding or with bits left over,
  or a second form of the same number of parts is refused.
- Only tokens that were verified are remembered, so that nobody can fill the memory without a key. A key set that
  changes makes them forgotten.
- A token is never logged, nor is any claim of a token that was not verified.

Source: RFC 7515 (signatures), RFC 7519 (claims), RFC 8725 (best practices).
"""

import base64
import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, get_args

from structlog.typing import FilteringBoundLogger

from gateway.config.model import Jwt, Scope
from gateway.core.credential import Facts, Presented, Refused, Verdict
from gateway.core.errors import GatewayError
from gateway.core.jwk import MAX_KEY_ID, KeySet, secret_key
from gateway.core.principal import JWT, Principal
from gateway.identity.jwks import FetchedKeys

MAX_TOKEN: Final = 8192
"""Characters of a token, which is what the head of a request may hold. Tokens with a user's groups pass 4096."""
MAX_SUBJECT: Final = 256
"""Characters of a subject. Source: OpenID Connect Core 2 allows 255."""
REMEMBERED: Final = 4096
"""Verified tokens that are remembered, about 3 MB at most."""
LATEST: Final = 253_402_300_799
"""The last second of the year 9999. A later `exp` is not in seconds."""
MAX_DIGITS: Final = 20
"""Digits of a whole number in a token."""

SCOPES: Final = frozenset(get_args(Scope))
_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What `typ` may say of a token for access. Source: RFC 7519 5.1, RFC 9068 2.1, RFC 8725 3.11."""
_MISSING: Final = object()
_REFUSED_HEADERS: Final = ("crit", "b64", "cty", "enc", "zip")
"""Header members of tokens that are not what they look like: with extensions that have to be understood, a payload
that is not encoded, or another token inside."""


class Token(NamedTuple):
    """A token as it was read, not yet believed.

    Attributes:
        header, claims: its two JSON objects.
        message: what was signed.
        signature: the signature, decoded.
    """

    header: dict[str, Any]
    claims: dict[str, Any]
    message: bytes
    signature: bytes


class TokenError(Exception):
    """A token is not valid. The text says why, in words that hold nothing of the token."""


class ExpiredError(TokenError):
    """A token was valid once."""


class KeySource(Protocol):
    """Where an issuer's keys come from."""

    @property
    def keys(self) -> KeySet | None:
        """The keys; None while there were never any. The same object as long as they are the same."""

    @property
    def retry_after(self) -> float:
        """Seconds until there may be keys; used only while there are none."""

    def refresh(self) -> Awaitable[None] | None:
        """Something to wait for that gives newer keys, soon and in any case; None if there is nothing to wait for."""


class FixedKeys:
    """Keys that only a reload changes."""

    retry_after = 0.0

    def __init__(self, keys: KeySet) -> None:
        self.keys: KeySet | None = keys

    def refresh(self) -> None:
        """There is nothing to wait for."""


class _Remembered(NamedTuple):
    """A verified token: its principal, and the key set and source that it was verified with."""

    principal: Principal
    source: KeySource
    keys: KeySet


class JwtVerifier:
    """Knows the principals of signed tokens, by the issuers of the configuration.

    After a reload that changed the issuers, make another one with `kept` and close this one with `close`.

    Args:
        settings: `auth.jwt`.
        logger: the process's log.
        kept: the verifier before; key sets that are fetched from the same URL are taken from it.
    """

    def __init__(
        self, settings: Sequence[Jwt], logger: FilteringBoundLogger, kept: "JwtVerifier | None" = None
    ) -> None:
        self.settings = tuple(settings)
        self.fetched: dict[str, FetchedKeys] = {}
        urls = dict.fromkeys(entry.jwks_url for entry in settings if entry.jwks_url is not None)
        for url in urls:
            self.fetched[url] = (kept.fetched.get(url) if kept else None) or FetchedKeys(url, logger)
        self._issuers: dict[str, list[Issuer]] = {}
        for entry in settings:
            source = self.fetched[entry.jwks_url] if entry.jwks_url is not None else _fixed(entry)
            self._issuers.setdefault(entry.issuer, []).append(Issuer(entry, source))
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    async def close(self, successor: "JwtVerifier | None" = None) -> None:
        """Stops fetching, but for the key sets that the successor uses."""
        for url, fetched in self.fetched.items():
            if successor is None or successor.fetched.get(url) is not fetched:
                await fetched.close()

    def verify(self, presented: Presented | None, facts: Facts, now: float) -> Verdict:
        """See `Verifier`.

        Raises:
            GatewayError: `overloaded`, where the keys of the token's issuer were never fetched.
        """
        if presented is None or presented.secret.count(".") < 2:
            return None
        digest = hashlib.sha256(presented.secret.encode("utf-8", "surrogatepass")).digest()
        if (principal := self._recall(digest, now)) is not None:
            return principal
        try:
            token = read_token(presented.secret)
            issuers = self._issuers_of(token, now)
        except TokenError as error:
            return Refused("expired" if isinstance(error, ExpiredError) else "invalid", str(error))
        return self._verify(digest, token, issuers, again=True)

    def _issuers_of(self, token: Token, now: float) -> "list[Issuer]":
        """The issuers that could have signed this token for us."""
        name = token.claims.get("iss")
        issuers = self._issuers.get(name, []) if isinstance(name, str) else []
        if not issuers:
            raise TokenError("its issuer is not configured")
        fitting, reason = [], None
        for issuer in issuers:
            try:
                issuer.check(token, now)
                self._check_unambiguous(token, issuer)
            except TokenError as error:
                reason = error
            else:
                fitting.append(issuer)
        if not fitting and reason is not None:
            raise reason
        return fitting

    def _check_unambiguous(self, token: Token, issuer: "Issuer") -> None:
        """A principal's id is `<issuer>:<subject>`. So no subject of one issuer may make an id of another's: `8443:x`
        of `https://id` would be `x` of `https://id:8443`."""
        written = f"{issuer.name}:{issuer.subject(token)}"
        if any(written.startswith(f"{name}:") for name in self._issuers if len(name) > len(issuer.name)):
            raise TokenError("its subject could be taken for another issuer's")

    def _verify(self, digest: bytes, token: Token, issuers: "list[Issuer]", *, again: bool) -> Verdict:
        """The principal if one of these issuers signed the token."""
        key_id = token.header.get("kid")
        for issuer in issuers:
            keys = issuer.source.keys
            if keys is not None and keys.verifies(key_id, token.header["alg"], token.message, token.signature):
                return self._remember(digest, issuer, keys, issuer.principal(token))
        # A key that is not in a set may be newer than the set.
        sources = [issuer.source for issuer in issuers]
        old = [source for source in sources if source.keys is None or not source.keys.knows(key_id)]
        waits = [wait for source in old if (wait := source.refresh()) is not None] if again else []
        if waits:
            return self._wait(waits, digest, token, issuers)
        missing = [source.retry_after for source in sources if source.keys is None]
        if missing:
            detail = "the keys of the token's issuer were never fetched"
            raise GatewayError("overloaded", retry_after=max(1.0, math.ceil(min(missing))), detail=detail)
        return Refused("invalid", "no key of its issuer made its signature")

    async def _wait(
        self, waits: Iterable[Awaitable[None]], digest: bytes, token: Token, issuers: "list[Issuer]"
    ) -> Principal | Refused | None:
        for wait in waits:
            await wait
        verdict = self._verify(digest, token, issuers, again=False)
        assert not isinstance(verdict, Awaitable)
        return verdict

    def _recall(self, digest: bytes, now: float) -> Principal | None:
        """The principal of a token that was verified before, with the keys that its issuer still has."""
        remembered = self._remembered.get(digest)
        if remembered is None:
            return None
        expires = remembered.principal.expires
        if remembered.source.keys is not remembered.keys or expires is None or now >= expires:
            del self._remembered[digest]
            return None
        self._remembered.move_to_end(digest)
        return remembered.principal

    def _remember(self, digest: bytes, issuer: "Issuer", keys: KeySet, principal: Principal) -> Principal:
        self._remembered[digest] = _Remembered(principal, issuer.source, keys)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return principal


def _fixed(entry: Jwt) -> FixedKeys:
    if entry.key_file is not None:
        return FixedKeys(entry.key_file.keys())
    return FixedKeys(secret_key(entry.secret or ""))


class Issuer:
    """One entry of `auth.jwt`: what is asked of a token, and what its claims mean.

    Args:
        entry: the settings.
        source: where the keys come from.
    """

    def __init__(self, entry: Jwt, source: KeySource) -> None:
        self.name = entry.issuer
        self.source = source
        self._entry = entry

    def check(self, token: Token, now: float) -> None:
        """Returns if everything but the signature is good.

        Raises:
            TokenError: it is not.

        Source: RFC 7519 4.1.
        """
        entry, claims = self._entry, token.claims
        if token.header.get("alg") not in entry.algorithms:
            raise TokenError("its algorithm is not in the list")
        audience = claims.get("aud")
        if not (entry.audience == audience or (isinstance(audience, list) and entry.audience in audience)):
            raise TokenError("it is for another audience")
        self.subject(token)
        expires = _moment(claims, "exp")
        if expires is None:
            raise TokenError("it has no exp")
        for name in ("nbf", "iat"):
            begins = _moment(claims, name)
            if begins is not None and begins > now + entry.leeway:
                raise TokenError(f"its {name} is in the future")
        if now >= expires + entry.leeway:
            raise ExpiredError("it has expired")

    def subject(self, token: Token) -> str:
        """The subject, which can be shown in a log.

        Raises:
            TokenError: it is missing, too long, no text, or holds what cannot be shown.
        """
        subject = _claim(token.claims, self._entry.subject_claim)
        # A number is not taken for its digits: two subjects must not become one principal.
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise TokenError("its subject is missing, or is no text of up to 256 characters that can be shown")
        return subject

    def principal(self, token: Token) -> Principal:
        """What a verified token stands for. Its principal expires when the token does, leeway included."""
        entry = self._entry
        expires = _moment(token.claims, "exp")
        assert expires is not None, "`check` comes first"
        plan, scopes = entry.plan, frozenset[str](entry.scopes)
        claimed = _claim(token.claims, entry.plan_claim)
        if claimed is not None:
            plan = claimed if isinstance(claimed, str) else ""  # no plan's name, so `default` applies
        claimed = _claim(token.claims, entry.scopes_claim, missing=_MISSING)
        if claimed is not _MISSING:
            scopes = SCOPES & _words(claimed)
        return Principal(JWT, f"{self.name}:{self.subject(token)}", plan, scopes, expires + entry.leeway)


def read_token(text: str) -> Token:
    """The parts of a token in compact form.

    Raises:
        TokenError: it has another form, or asks for more than this program understands.

    Source: RFC 7515 7.1 and 4.1.11; RFC 7797 6.
    """
    if len(text) > MAX_TOKEN:
        raise TokenError(f"it is longer than {MAX_TOKEN} characters")
    parts = text.split(".")
    if len(parts) != 3:
        raise TokenError("it has not three parts")
    header, claims = _object(_decoded(parts[0])), _object(_decoded(parts[1]))
    if any(name in header for name in _REFUSED_HEADERS):
        raise TokenError("its header asks for an extension, or announces another content")
    kind, key_id = header.get("typ", "JWT"), header.get("kid", "")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenError("it is a token of another type")
    if not isinstance(key_id, str) or len(key_id) > MAX_KEY_ID:
        raise TokenError("its kid is no text of a length that can be")
    if not isinstance(header.get("alg"), str):
        raise TokenError("its alg is no text")
    return Token(header, claims, f"{parts[0]}.{parts[1]}".encode(), _decoded(parts[2]))


def _decoded(part: str) -> bytes:
    """The bytes of base64url without padding, in the only spelling that they have. Source: RFC 7515 2, RFC 4648 3.5."""
    if not _PART.fullmatch(part) or len(part) % 4 == 1:
        raise TokenError("a part is no base64url")
    content = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(content).rstrip(b"=") != part.encode():
        raise TokenError("a part is no base64url")
    return content


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object of which no member occurs twice, at any depth. Source: RFC 8725 2.4, RFC 8259 4."""
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_int=_whole,
            parse_float=_fraction,
        )
    except (ValueError, RecursionError):
        raise TokenError("a part is no JSON object that says everything once") from None
    if not isinstance(value, dict):
        raise TokenError("a part is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _no_number(text: str) -> float:
    raise ValueError(text)  # NaN and Infinity are not JSON


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _fraction(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _claim(claims: Mapping[str, Any], name: str | None, missing: object = None) -> Any:
    """The claim of this name, else of this path, as `realm_access.roles`; `missing` where there is none."""
    if name is None or name in claims:
        return missing if name is None else claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return missing
        found = found[part]
    return found


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """A time in Unix seconds, None where there is none. Source: RFC 7519 2, NumericDate."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST:
        raise TokenError(f"its {name} is no time in seconds")
    return float(value)


def _words(value: object) -> set[str]:
    """The words of a text with blanks between, or of a list. Source: RFC 8693 4.2."""
    if isinstance(value, str):
        return set(value.split())
    return {word for word in value if isinstance(word, str)} if isinstance(value, list) else set()
