"""compose.yaml without an engine: the schema, every file it names, and the ways its parts find one another."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from gateway.config.loader import load
from grafana.boards import BOARDS
from tests.kit.program import ROOT, Gateway, Nginx, free_port
from tests.kit.sse_client import EventSource, request

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NGINX = (ROOT / "compose/nginx.conf").read_text(encoding="utf-8")
OWN = {"proxy_set_header Host": "so that the port outside stays in it"}
"""Directives that differ on purpose from those of nginx/gateway.conf."""


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def mounts(service: str) -> dict[str, str]:
    """What a container has at which path: a file of this repository, or a volume's name."""
    parts = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {inside: outside for outside, inside, *_ in parts}


def mounted(service: str, path: str) -> Path:
    """The file or directory of this repository that a container sees at a path."""
    inside = max((one for one in mounts(service) if Path(path).is_relative_to(one)), key=len)
    return ROOT / mounts(service)[inside] / Path(path).relative_to(inside)


def port_inside(service: str, outside: int) -> int:
    return next(
        int(inside)
        for _, published, inside in (port.split(":") for port in SERVICES[service]["ports"])
        if int(published) == outside
    )


def test_engine_accepts_the_file() -> None:
    path = ROOT / "node_modules/dclint/schemas/compose.schema.json"
    if not path.exists():
        pytest.fail("the schema of compose files is missing; run: npm ci")
    Draft7Validator(json.loads(path.read_text(encoding="utf-8"))).validate(COMPOSE)


def test_every_mounted_file_is_there_and_read_only() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            outside, _, *mode = volume.split(":")
            if outside.startswith("."):
                assert (ROOT / outside).exists(), outside
                assert mode == ["ro"], volume
            else:
                assert outside in COMPOSE["volumes"], outside


def test_nothing_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_images_are_pinned_and_every_service_is_watched() -> None:
    for name, service in SERVICES.items():
        if not name.startswith("gateway"):
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-alpine)?", service["image"]), service["image"]
            assert "healthcheck" in service, name
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_no_secret_is_written_down() -> None:
    named = r"(?i)(password|secret|api_?key)\w*\"?[:=]\s*[\"']?[^\s\"'$-]"
    for path in (ROOT / "compose.yaml", ROOT / "compose/gateway.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not line.startswith("#") and re.search(named, line)] == [], path


def test_gateway_takes_its_configuration_and_outlives_its_drain() -> None:
    config = load(mounted("gateway", "/etc/gateway/config.yaml"))
    assert (config.server.listen.port, config.server.listen.host) == (8080, "0.0.0.0")
    assert config.server.admin_listen is not None
    assert config.server.admin_listen.port == port_inside("gateway", 9090)
    assert config.server.drain < int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))


def test_gateways_differ_in_their_port_alone_and_share_the_store() -> None:
    first, second = SERVICES["gateway"], SERVICES["gateway-2"]
    assert first | {"ports": second["ports"]} == second
    assert (port_inside("gateway", 9090), port_inside("gateway-2", 9092)) == (9090, 9090)
    store = load(mounted("gateway", "/etc/gateway/config.yaml")).store
    assert store.url == "redis://redis:6379/0"
    assert SERVICES["redis"]["command"][-2:] == ["--maxmemory-policy", "noeviction"]
    for name in ("gateway", "gateway-2"):
        assert f"server {name}:8080 max_fails=0;" in NGINX


def test_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source.strip("./") in sent or any(source.startswith(f"{one}/") for one in sent), source


def test_prometheus_finds_its_rules_and_the_gateway() -> None:
    config = read("prometheus/prometheus.yml")
    [flag] = [flag for flag in SERVICES["prometheus"]["command"] if "config.file" in flag]
    assert mounted("prometheus", flag.partition("=")[2]) == ROOT / "prometheus/prometheus.yml"
    for pattern in config["rule_files"]:
        assert list((ROOT / "prometheus").glob(pattern)), pattern
    [targets] = [one["static_configs"] for one in config["scrape_configs"] if one["job_name"] == "gateway"]
    assert targets == [{"targets": ["gateway:9090", "gateway-2:9090"]}]


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = "/etc/grafana/provisioning"
    [source] = read(str(mounted("grafana", f"{provisioning}/datasources/prometheus.yaml")))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == read("prometheus/prometheus.yml")["global"]["scrape_interval"]
    [provider] = read(str(mounted("grafana", f"{provisioning}/dashboards/gateway.yaml")))["providers"]
    directory = mounted("grafana", provider["options"]["path"])
    assert {path.stem for path in directory.glob("*.json")} == set(BOARDS)
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home).exists()


# -- nginx -------------------------------------------------------------------------------------------------------------


def directives(text: str) -> Iterator[str]:
    """What stands in `location /`, without comments."""
    block = text[text.index("location / {") :]
    for line in block[: block.index("\n    }")].splitlines()[1:]:
        if statement := line.partition("#")[0].strip():
            yield statement


def test_nginx_passes_streams_as_the_one_with_tls_does() -> None:
    shipped = set(directives((ROOT / "nginx/gateway.conf").read_text(encoding="utf-8")))
    differing = shipped ^ set(directives(NGINX))
    assert {" ".join(one.split()[:2]) for one in differing} == set(OWN)


class LocalNginx(Nginx):
    """nginx with the configuration of compose, without TLS; its address is `plain_url`."""

    def _edited(self, port: int, plain_port: int) -> str:
        text = NGINX
        edits = {
            "server gateway:8080": f"server {self._upstream}",
            "server gateway-2:8080": f"server {self._upstream}",
            "listen 80;": f"listen 127.0.0.1:{plain_port};",
            "/dev/stdout": str(self.access_log),
            "/dev/stderr": str(self.error_log),
        }
        for shipped, here in edits.items():
            assert shipped in text, shipped
            text = text.replace(shipped, here)
        return text


async def test_browser_chats_through_both_configurations(tmp_path: Path) -> None:
    config = read("compose/gateway.yaml")
    config["server"] = {"trusted_proxies": ["127.0.0.1"]}
    del config["store"]
    async with Gateway(config, tmp_path) as gateway:
        async with LocalNginx(gateway.url.removeprefix("http://"), tmp_path) as nginx:
            async with await request(f"{nginx.plain_url}/") as page:
                assert (page.status, page.media_type) == (200, "text/html")
            async with EventSource(f"{nginx.plain_url}/api/chat?message=/fast&token=secret") as source:
                assert (await source.until("done", timeout=20))[-1].type == "done"
        assert '"GET /api/chat HTTP/1.1" 200' in nginx.access_log.read_text()
        assert "secret" not in nginx.access_log.read_text()
        await gateway.logged("stream_end", outcome="completed")


async def test_browser_comes_back_when_the_gateway_is_away(tmp_path: Path) -> None:
    async with LocalNginx(f"127.0.0.1:{free_port()}", tmp_path) as nginx:
        async with await request(f"{nginx.plain_url}/api/chat", headers={"Accept": "text/event-stream"}) as stream:
            assert (stream.status, await stream.body()) == (200, b"retry: 2000\n: the gateway is away\n\n")
        async with await request(f"{nginx.plain_url}/v1/chat/completions", method="POST", body={}) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
