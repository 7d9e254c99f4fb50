"""Bad configs in, the exact lines of `gateway check` out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ConfigError, load, load_text
from tests.config.cases import cases

BASE = """\
upstreams:
  main: {dialect: openai, targets: [{url: "demo:"}]}
routes:
  - {path: /v1/chat/completions, api: openai, upstream: main}
  - {path: /api/chat, api: chat, upstream: main}
"""


def lines(text: str, **environ: str) -> list[str]:
    """What `gateway check` prints for `text`, less the file's name."""
    with pytest.raises(ConfigError) as error:
        load_text(text, "f", environ)
    return [line.removeprefix("f:") for line in str(error.value).splitlines()]


def placed(heading: str, yaml: str) -> str:
    """A config with `yaml` where `heading` says."""
    head, routes = BASE.split("routes:")
    texts = {
        "[whole]": f"{yaml}\n",
        "[appended]": f"{BASE}{yaml}\n",
        "[route]": f"{BASE}  - {{{yaml}}}\n",
        "[upstream]": f"# moves the line\n# twice\n\n{head}  x: {{{yaml}}}\nroutes:{routes}",
    }
    return texts[heading]


@pytest.mark.parametrize(("heading", "yaml", "expected"), list(cases("bad_configs.txt")))
def test_check_names_line_key_fault_and_what_is_allowed(heading: str, yaml: str, expected: list[str]) -> None:
    assert lines(placed(heading, yaml)) == expected


def test_check_takes_a_model_from_the_route_the_upstream_all_targets_or_their_own_list() -> None:
    text = BASE.replace('openai, targets: [{url: "demo:"}]', "ollama, targets: [{url: http://a}]")
    load_text(text)
    load_text(text.replace("api: chat", "api: chat, model: qwen3"))
    load_text(text.replace("api: chat", 'api: chat, model: "${MODEL:-}"'), environ={})  # empty is the same as null
    load_text(text.replace("dialect: ollama", "dialect: ollama, model: qwen3"))
    load_text(text.replace("url: http://a", "url: http://a, model: qwen3"))


def test_check_names_a_top_level_mistake_once_however_many_routes_inherit_it() -> None:
    assert len(lines(f"{BASE}stream: {{retry: 1}}\ntimeouts: {{x: 1}}\n")) == 2


SECRET = "sk-4711-do-not-print"


@pytest.mark.parametrize(
    "part",
    [
        "auth: {keys: [{id: a, sha256: '${SECRET}'}]}",
        "auth: {keys: [{id: a, key: ['${SECRET}']}]}",
        "auth: {keys: [{id: a, key: '${SECRET}', expires: '${SECRET}'}]}",
        "log: {level: '${SECRET}'}",
        "stream: {heartbeat: '${SECRET}'}",
        "store: ${SECRET}",
        "cors: {origins: ['https://${SECRET}@a/']}",
        "server: {listen: '${SECRET}', trusted_proxies: ['${SECRET}']}",
    ],
)
def test_check_never_prints_what_was_put_in(part: str) -> None:
    assert SECRET not in "\n".join(lines(f"{BASE}{part}\n", SECRET=SECRET))


@pytest.mark.parametrize(
    "part", ["api_key: [SECRET]", "api_key: {SECRET: 1}", "headers: {X-Key: [SECRET]}", 'headers: {X-Key: "SECRET\\n"}']
)
def test_check_never_prints_an_upstreams_secret(part: str) -> None:
    text = BASE.replace('[{url: "demo:"}]', '[{url: "demo:"}], ' + part)
    assert not any("SECRET" in line.replace("{SECRET: 1}", "") for line in lines(text))


def test_config_never_prints_a_secret() -> None:
    config = load_text(
        BASE.replace('[{url: "demo:"}]', f'[{{url: "demo:"}}], api_key: {SECRET}, headers: {{X-Key: {SECRET}}}')
        + f"auth: {{keys: [{{id: a, key: {SECRET}}}]}}\n"
    )
    assert SECRET not in repr(config) + str(config)


def test_check_refuses_a_file_that_is_too_large() -> None:
    assert lines("# " + "x" * (1 << 20)) == ["1: is too large; allowed: 1 MiB"]


def test_load_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml:1: cannot be read: No such file or directory"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not text; allowed: UTF-8"):
        load(tmp_path / "latin.yaml")


def test_load_of_an_endless_file_reads_no_more_than_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero:1: is too large; allowed: 1 MiB"):
        load("/dev/zero")


def test_load_reads_secrets_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    (tmp_path / "config.yaml").write_bytes(
        b"\xef\xbb\xbf" + f"{BASE}auth: {{keys: [{{id: a, key: '${{file:key}}'}}]}}\n".encode()
    )
    assert load(tmp_path / "config.yaml").auth.keys[0].key == SECRET


SCALARS = st.sampled_from(["", "~", "5", "no", "demo:", "main", "chat", "openai", "*", "true", "/a", "${X}", "1s"])
NAMES = """server listen admin_listen auth keys id key plan plans cors origins credentials stream batch timeouts
upstreams main targets url dialect routes path api upstream params message history format query_param model merge"""
KEYS = st.sampled_from(NAMES.split())
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def spelled(tree: object) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {spelled(value)}" for key, value in tree.items()) + "}"
    return "[" + ", ".join(map(spelled, tree)) + "]" if isinstance(tree, list) else f"{tree}"


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_load_of_any_nonsense_ends_in_problems(tree: dict[str, object]) -> None:
    assert all(line.partition(":")[0] == "1" for line in lines(spelled(tree)))
