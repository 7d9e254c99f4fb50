"""URLs of a Redis in, their parts out; what cannot be used is in `bad_configs.txt`."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import ConfigError, load_text
from gateway.config.addresses import Address
from gateway.config.store_url import StoreUrl, read_store_url

BASE = """\
upstreams: {main: {dialect: openai, targets: [{url: "demo:"}]}}
routes: [{path: /v1/chat/completions, api: openai, upstream: main}]
auth: {anonymous: true}
"""
HOST = Address("h", 6379)
NONE = StoreUrl((HOST,), "", "", False, None, None, 0, {})


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://h", NONE),
        ("REDIS://h/", NONE),
        ("redis://h:7000/15", NONE._replace(hosts=(Address("h", 7000),), database=15)),
        ("redis://h?db=3", NONE._replace(database=3)),
        ("redis://[fe80::1]:7000", NONE._replace(hosts=(Address("fe80::1", 7000),))),
        ("redis://:secret@h", NONE._replace(password="secret")),
        ("redis://u:s:e%2Fc%40r%3Fe%23t%25@h", NONE._replace(user="u", password="s:e/c@r?e#t%")),
        ("redis://u:p@ss@h", NONE._replace(user="u", password="p@ss")),
        ("redis://u@h", NONE._replace(user="u", password="")),
        ("redis://:@h", NONE),
        (
            "rediss://h?ssl_ca_certs=%2Fa b.pem&ssl_check_hostname=false".replace(" ", "%20"),
            NONE._replace(tls=True, options={"ssl_ca_certs": "/a b.pem", "ssl_check_hostname": "false"}),
        ),
        ("unix:///run/redis.sock", NONE._replace(hosts=(), path="/run/redis.sock")),
        (
            "unix://u:p@/run/redis.sock?db=2",
            NONE._replace(hosts=(), path="/run/redis.sock", user="u", password="p", database=2),
        ),
        (
            "redis+sentinel://u:p@a,b.example:7,[::1]/main/2?sentinel_password=x",
            NONE._replace(
                hosts=(Address("a", 26379), Address("b.example", 7), Address("::1", 26379)),
                master="main",
                user="u",
                password="p",
                database=2,
                options={"sentinel_password": "x"},
            ),
        ),
        (
            "rediss+sentinel://a/main?ssl_cert_reqs=none",
            NONE._replace(hosts=(Address("a", 26379),), master="main", tls=True, options={"ssl_cert_reqs": "none"}),
        ),
    ],
)
def test_url_has_one_meaning(url: str, parts: StoreUrl) -> None:
    assert read_store_url(url) == parts
    assert load_text(f"{BASE}store: '{url}'\n").store.url == url


SECRET = "pw-4711-do-not-print"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/@h",
        f"redis://:{SECRET}@h:x",
        f"redis://h/{SECRET}",
        f"redis://h?{SECRET}=1",
        f"redis://h?password={SECRET}",
        f"http://:{SECRET}@h",
        f"redis+sentinel://h/?sentinel_password={SECRET}",
        f"rediss://h?ssl_cert_reqs={SECRET}",
        SECRET,
    ],
)
def test_refused_url_is_not_repeated(url: str) -> None:
    for store in (f"'{url}'", f"{{url: '{url}'}}", f"['{url}']"):
        with pytest.raises(ConfigError) as raised:
            load_text(f"{BASE}store: {store}\n")
        assert SECRET not in str(raised.value)


def test_config_never_shows_the_password_or_the_secret() -> None:
    store = load_text(f"{BASE}store: {{url: 'redis://:{SECRET}@h', secret: {SECRET}}}\n").store
    assert store.shared
    assert SECRET not in f"{store} {store!r}"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_shared_store_without_its_library_says_what_to_install(command: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{BASE}store: redis://127.0.0.1:1\n")
    program = f"import sys; sys.modules['redis'] = None; from gateway.cli import main; sys.exit(main(['{command}']))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "config.yaml:4: store: needs a library that is not installed here; run: pip install 'sse-gateway[redis]'\n"
    assert (ended.returncode, ended.stdout + ended.stderr) == (1, said)
