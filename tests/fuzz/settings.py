# ruff: noqa: E501, PT017 - inputs are best read whole; what an error says is checked for every input
"""What operators write: the configuration, and its single values."""

import ipaddress
import random
from collections.abc import Hashable
from typing import Final

from gateway.config import ConfigError, examine_text
from gateway.config.addresses import Address, Listen, Location, Moment, Network, Origin, Path, Url
from gateway.config.rules import Bytes, PerTime, QueryValue, Rule, Seconds
from tests.fuzz.target import Target

CONFIG: Final = (
    b"server: {listen: 127.0.0.1:8080, max_body: 4MiB, drain: 30s}\nauth:\n  anonymous: false\n  keys:\n"
    b"    - {id: web, key: secret-key, plan: default, expires: 2027-01-01}\nplans:\n  default: {requests: 10/s, streams: 2}\n"
    b"upstreams:\n  llm:\n    dialect: openai\n    targets: [{url: http://127.0.0.1:9/v1}]\n"
    b"routes:\n  - {path: /chat, api: chat, upstream: llm, format: events}\n",
    b"routes: []\nupstreams: {}\n",
    b"auth:\n  jwt:\n    - {issuer: https://id.example.com, audience: chat, algorithms: [HS256],\n"
    b"       secret: 0123456789abcdef0123456789abcdef}\n  tickets: {ttl: 30s}\n"
    b"  forward: {url: 'http://app:3000/whoami', cookies: [session], ttl: 30s}\n"
    b"upstreams: {a: {dialect: sse, targets: [{url: 'demo:'}]}}\n"
    b"routes:\n  - {path: '/p/{path}', api: proxy, upstream: a, methods: [GET]}\n"
    b"  - {path: /c, api: chat, upstream: a, format: {preset: typed, token: {json: {t: $text}}}}\n",
    # As JSON, which is YAML too: so values are changed into others, and not only broken.
    b'{"server":{"listen":"127.0.0.1:8080","trusted_proxies":["10.0.0.0/8"],"hosts":["a.example"],"max_body":"4MiB"},'
    b'"log":{"level":"info"},"cors":{"origins":["https://a.example"],"credentials":true},"auth":{"sources":["header"],'
    b'"keys":[{"id":"web","key":"abcdefghijklmnop","scopes":["stream"]}],"jwt":[{"issuer":"i","audience":"a",'
    b'"secret":"0123456789abcdef0123456789abcdef","algorithms":["HS256"]}],"forward":{"url":"http://a/w","cookies":["s"],'
    b'"headers":["x-a"],"ttl":"30s"},"tickets":{"ttl":"30s"}},"plans":{"default":{"requests":"60/min","streams":5,'
    b'"tokens":["100000/min"]}},"stream":{"batch":{"interval":"auto"},"resume":{"ttl":"5m"},"on_disconnect":{"after":"30s"}},'
    b'"timeouts":{"idle":"2m"},"upstreams":{"main":{"dialect":"openai","targets":[{"url":"http://127.0.0.1:8000/v1",'
    b'"weight":1,"query":{"a":"b"}}],"headers":{"x":"y"},"params":{"max_tokens":5},"omit":["top_p"],"fallback":["backup"],'
    b'"breaker":{"failures":5}},"backup":{"dialect":"anthropic","targets":[{"url":"https://a/v1"}],"model":"c"}},"routes":['
    b'{"path":"/v1/chat/completions","api":"openai","upstream":"main"},{"path":"/c","api":"chat","upstream":"main",'
    b'"format":{"preset":"events","token":{"json":{"t":"$text"}}},"history":{"turns":20},"params":{"message":"m"}},'
    b'{"path":"/p/{path}","api":"proxy","upstream":"main","methods":["GET"]}]}',
)


def check_config(data: bytes, rng: random.Random) -> Hashable:
    """A configuration or a list of what is wrong, each with a place, and never a value that may be secret."""
    try:
        examine_text(data.decode("utf-8", "replace"), environ={"X": "1"})
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line >= 1
            assert len(str(problem)) < 10_000
        return str(error.problems[0])[:60]
    return "good"


VALUES: Final = (
    b"127.0.0.1:8080",
    b"[::1]:80",
    b"10.0.0.0/8",
    b"https://app.example.com",
    b"http://127.0.0.1:8000/v1?a=b#c",
    b"/legacy/{path}",
    b"2027-01-31T12:00:00+08:00",
    b"15s",
    b"64KiB",
    b"100000/day",
    b"demo:",
)
RULES: Final[tuple[Rule, ...]] = (
    Listen(),
    Network(),
    Origin(),
    Url(),
    Location(),
    Path(),
    Path(variable=True),
    Moment(),
    Seconds("0s", "1h"),
    Bytes("1KiB", "1GiB"),
    PerTime(),
    QueryValue(),
)


def check_value(data: bytes, rng: random.Random) -> Hashable:
    """Each rule gives a value or says what is allowed, without repeating what was written."""
    text = data.decode("utf-8", "replace")
    taken = []
    for rule in RULES:
        try:
            value = rule.parse(text)
        except ValueError as error:
            assert "allowed: " in str(error), (rule, error)
            assert len(text) < 12 or text in rule.allowed or text not in str(error), (rule, error)
            continue
        taken.append(type(rule).__name__)
        if isinstance(value, Address):
            assert 0 <= value.port <= 65535
            assert rule.parse(str(value)) == value
        if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
            assert rule.parse(str(value)) == value
        if isinstance(rule, Url | Location | Origin | Path):
            assert not any(letter in str(value) for letter in " \r\n\t\0")
        if isinstance(rule, Seconds):
            assert 0 <= value <= 3600
    return tuple(taken)


def targets() -> dict[str, Target]:
    """By name."""
    return {"config": Target(CONFIG, check_config, 1), "value": Target(VALUES, check_value, 5)}
