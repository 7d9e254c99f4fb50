import hashlib
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from gateway.config import Config, load_text
from gateway.config.addresses import Address
from gateway.config.model import ROUTES, Section
from gateway.core.rate import Rate

BASE = 'upstreams: {main: {dialect: openai, targets: [{url: "demo:"}]}}\n'


def with_routes(*routes: str, more: str = "") -> Config:
    return load_text(
        f"{BASE}{more}\nroutes: [{', '.join(f'{{path: /{n}, upstream: main, {r}}}' for n, r in enumerate(routes))}]",
        environ={},
    )


def test_config_has_the_defaults_of_the_contract() -> None:
    config = with_routes("api: chat")
    assert (config.server.listen, config.server.admin_listen) == (
        Address("127.0.0.1", 8080),
        Address("127.0.0.1", 9090),
    )
    assert (config.server.max_body, config.server.drain, config.server.max_log_bytes) == (4 << 20, 30.0, 512 << 20)
    assert (config.stream.heartbeat, config.stream.batch.interval, config.stream.on_disconnect.after) == (
        15.0,
        None,
        30.0,
    )
    assert tuple(config.timeouts.model_dump().values()) == (5.0, 120.0, 120.0, 1800.0)
    assert config.limits.per_address.requests == Rate(600, 60.0)
    assert config.auth.anonymous is False


def test_config_cannot_be_changed() -> None:
    config = with_routes("api: chat")
    with pytest.raises(ValidationError, match="frozen"):
        config.stream.heartbeat = 1.0  # type: ignore[misc]


def test_route_lays_its_stream_over_the_top_level_one() -> None:
    more = "stream: {heartbeat: 5s, batch: {interval: 0, max_bytes: 1KiB}, resume: {ttl: 1m}}\ntimeouts: {idle: 9s}"
    config = with_routes(
        "api: chat, batch: {interval: 20ms}, stream: {retry: 3s, resume: {enabled: false}}, timeouts: {total: 1h}",
        more=more,
    )
    stream = config.routes[0].stream
    assert (stream.heartbeat, stream.retry, stream.write_timeout) == (5.0, 3.0, 20.0)
    assert (stream.batch.interval, stream.batch.max_bytes, stream.batch.boundary) == (0.02, 1024, "event")
    assert (stream.resume.enabled, stream.resume.ttl) == (False, 60.0)
    assert tuple(config.routes[0].timeouts.model_dump().values()) == (5.0, 120.0, 9.0, 3600.0)
    assert config.stream.batch.interval == 0.0


def test_route_merges_deltas_only_for_chat() -> None:
    assert [route.stream.merge for route in with_routes("api: chat", "api: openai", "api: proxy").routes] == [
        True,
        False,
        False,
    ]


def test_route_that_never_cancels_has_no_time_to_do_so() -> None:
    assert with_routes("api: chat, on_disconnect: {after: never}").routes[0].stream.on_disconnect.after is None


def test_query_of_a_target_is_text_however_it_was_written() -> None:
    query = "query: {api-version: 2024-10-21, tries: 2, share: 0.5, name: 北京}"
    upstreams = f'upstreams: {{main: {{dialect: openai, targets: [{{url: "http://a", {query}}}]}}}}\n'
    config = load_text(f"{upstreams}routes: [{{path: /a, api: chat, upstream: main}}]", environ={})
    assert config.upstreams["main"].targets[0].query == {
        "api-version": "2024-10-21",
        "tries": "2",
        "share": "0.5",
        "name": "北京",
    }


def test_plan_default_always_exists() -> None:
    assert with_routes("api: chat").plans["default"].requests is None
    assert with_routes("api: chat", more="plans: {default: {requests: 1/s}, pro: {}}").plans[
        "default"
    ].requests == Rate(1, 1.0)


def test_key_has_one_digest_however_it_was_written() -> None:
    digest = hashlib.sha256("密钥".encode()).hexdigest()
    keys = "auth: {keys: [{id: a, key: 密钥}]}", f"auth: {{keys: [{{id: a, sha256: '{digest.upper()}'}}]}}"
    assert {with_routes("api: chat", more=key).auth.keys[0].digest.hex() for key in keys} == {digest}


def test_key_expires_at_the_first_second_of_a_date() -> None:
    config = with_routes("api: chat", more="auth: {keys: [{id: a, key: x, expires: 2027-01-01}, {id: b, key: y}]}")
    assert [key.expires_at for key in config.auth.keys] == [1798761600.0, None]


def test_chat_without_history_remembers_nothing() -> None:
    route = with_routes("api: chat, history: null").routes[0]
    assert getattr(route, "history", "absent") is None


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        yield section
        yield from sections(section)


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_key_is_described(section: type[Section]) -> None:
    assert section.__doc__
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_no_route_key_is_also_a_stream_key() -> None:
    stream = set(Config.model_fields["stream"].annotation.model_fields)  # type: ignore[union-attr]
    assert all(stream.isdisjoint(route.model_fields) for route in ROUTES.values())
