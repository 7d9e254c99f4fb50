"""The proxies of `docs/operations.md`, each with the configuration that stands there.

    async with Proxy("HAProxy", "127.0.0.1:8080", directory) as front:
        ...front.url...       # in front of that address

The document's addresses, names and certificates become those of a test, and a proxy gets what its package would ship
around the block. Everything else is as users copy it.
"""

import asyncio
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.markdown import Document
from tests.kit.program import ROOT, START_SECONDS, Program, find_program, free_port, throwaway_certificate
from tests.kit.sse_client import request

OPERATIONS = Document(ROOT / "docs" / "operations.md")
GATEWAY, NAME, LISTENS = "127.0.0.1:8080", "chat.example.com", ":443"
"""What the blocks say of the gateway, of themselves, and of where they listen."""
CERTIFICATE, KEY = "/etc/ssl/certs/chat.example.com.pem", "/etc/ssl/private/chat.example.com.key"
BOTH = "/etc/haproxy/chat.example.com.pem"
ASK_AGAIN = 0.02
"""Seconds between two questions to a proxy that starts: most of them do not say when they are ready."""


class Place(NamedTuple):
    """Where a proxy stands in a test."""

    directory: Path
    port: int
    gateway: str

    def write(self, name: str, text: str) -> str:
        """The path of a new file with this text."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)


def edited(text: str, edits: Mapping[str, str]) -> str:
    """The text with all of these replaced, each of which it has to contain."""
    for shipped, here in edits.items():
        assert shipped in text, f"docs/operations.md no longer says {shipped!r}"
        text = text.replace(shipped, here)
    return text


def _haproxy(place: Place, blocks: Sequence[str]) -> list[str]:
    own = {f"bind {LISTENS}": f"bind 127.0.0.1:{place.port}", GATEWAY: place.gateway}
    own[BOTH] = f"{place.directory}/both.pem"
    defaults = (
        "global\n    log stderr format raw local0\ndefaults\n    log global\n    mode http\n    option httplog\n"
        "    option dontlognull\n    timeout connect 5000\n    timeout client 50000\n    timeout server 50000\n"
        "    retries 1\n"  # Each takes a second; Debian leaves it at three.
    )
    return [
        find_program("haproxy", "haproxy"),
        *("-db", "-f", place.write("haproxy.cfg", defaults + edited(blocks[0], own))),
    ]


def _caddy(place: Place, blocks: Sequence[str]) -> list[str]:
    site = f"https://127.0.0.1:{place.port} {{\n    bind 127.0.0.1\n    tls {place.directory}/localhost.pem "
    site += f"{place.directory}/localhost.key"
    ours = f"{{\n    admin off\n    auto_https disable_redirects\n    storage file_system {place.directory}/caddy\n"
    text = edited(blocks[0], {f"{NAME} {{": site, GATEWAY: place.gateway})
    assert text.startswith("{\n")
    conf = place.write("Caddyfile", ours + text.removeprefix("{\n"))
    return [find_program("caddy", "caddy"), "run", "--adapter", "caddyfile", "--config", conf]


APACHE_MODULES = "mpm_event authz_core headers proxy proxy_http ssl socache_shmcb reqtimeout filter deflate setenvif"


def _apache(place: Place, blocks: Sequence[str]) -> list[str]:
    own = {
        f"*{LISTENS}": f"127.0.0.1:{place.port}",
        GATEWAY: place.gateway,
        CERTIFICATE: f"{place.directory}/localhost.pem",
        KEY: f"{place.directory}/localhost.key",
        NAME: "127.0.0.1",
        "${APACHE_LOG_DIR}": str(place.directory),
    }
    modules = "".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in APACHE_MODULES.split()
    )
    main = (
        f"{modules}ServerRoot {place.directory}\nPidFile {place.directory}/apache.pid\n"
        f"DefaultRuntimeDir {place.directory}\nServerName 127.0.0.1\nListen 127.0.0.1:{place.port}\n"
        f"ErrorLog {place.directory}/error.log\nTimeout 300\nKeepAliveTimeout 5\nStartServers 1\n"
    )
    if os.geteuid() == 0:
        main += "User www-data\nGroup www-data\n"
    conf = place.write("apache.conf", main + edited(blocks[0], own))
    return [find_program("apache2", "apache2-bin"), "-DFOREGROUND", "-f", conf]


def _lighttpd(place: Place, blocks: Sequence[str]) -> list[str]:
    host, _, port = place.gateway.partition(":")
    own = {'"port" => 8080': f'"port" => {port}', NAME: host}
    main = (
        f'server.document-root = "{place.directory}"\nserver.bind = "127.0.0.1"\nserver.port = {place.port}\n'
        f'server.errorlog = "{place.directory}/error.log"\n'
        'server.http-parseopts = ("url-path-2f-decode" => "disable", "url-path-dotseg-remove" => "enable")\n'
        'server.feature-flags += ("server.graceful-shutdown-timeout" => 5)\n'
    )
    conf = place.write("lighttpd.conf", main + edited(blocks[0], own))
    return [find_program("lighttpd", "lighttpd"), "-D", "-f", conf]


def _traefik(place: Place, blocks: Sequence[str]) -> list[str]:
    own = {
        GATEWAY: place.gateway,
        CERTIFICATE: f"{place.directory}/localhost.pem",
        KEY: f"{place.directory}/localhost.key",
        NAME: "127.0.0.1",
    }
    rules = place.write("gateway.yml", edited(blocks[1], own))
    own = {f'"{LISTENS}"': f'"127.0.0.1:{place.port}"', "/etc/traefik/gateway.yml": rules}
    conf = place.write("traefik.yml", edited(blocks[0], own))
    return [find_program("traefik", "traefik"), f"--configfile={conf}"]


def _installed(name: str) -> str:
    """The path of a program that comes with the client libraries."""
    path = Path(sys.prefix + "-clients") / "bin" / name
    if not path.exists():
        pytest.fail(f"{name} is missing; run: make {path.parents[1].name}/.installed")
    return str(path)


def _envoy(place: Place, blocks: Sequence[str]) -> list[str]:
    own = {
        "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {place.port}",
        "port_value: 8080": f"port_value: {place.gateway.partition(':')[2]}",
        CERTIFICATE: f"{place.directory}/localhost.pem",
        KEY: f"{place.directory}/localhost.key",
    }
    conf = place.write("envoy.yml", edited(blocks[0], own))
    return [_installed("envoy"), "-c", conf, "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]


PROXIES: dict[str, Callable[[Place, Sequence[str]], list[str]]] = {
    "HAProxy": _haproxy,
    "Caddy": _caddy,
    "Apache": _apache,
    "lighttpd": _lighttpd,
    "Traefik": _traefik,
    "Envoy": _envoy,
}


TRIED = [name for name in PROXIES if name != "Traefik" or shutil.which("traefik")]
"""Those that the tests start: Traefik only where it is installed, as its package has 50 MB and is none of Debian's."""


class Proxy(Program):
    """One of `PROXIES` in front of an address.

    Args:
        name: the heading in the document.
        gateway: `host:port` of the gateway.
        directory: for its files.

    Attributes:
        url: without a slash at the end.
        tls: trusts its certificate; None where the document has it without TLS.
    """

    def __init__(self, name: str, gateway: str, directory: Path) -> None:
        self.name = name
        self.certificate, key = throwaway_certificate(directory)
        directory.chmod(0o755)
        both = directory / "both.pem"
        both.write_text(self.certificate.read_text("utf-8") + key.read_text("utf-8"), encoding="utf-8")
        place = Place(directory, free_port(), gateway)
        command = PROXIES[name](place, [block.text for block in OPERATIONS.blocks if block.section == name])
        super().__init__(command, cwd=directory, env={"HOME": str(directory)})
        secure = name != "lighttpd"
        self.url = f"http{'s' if secure else ''}://127.0.0.1:{place.port}"
        self.tls = ssl.create_default_context(cafile=self.certificate) if secure else None

    async def restart(self) -> None:
        """End it, whatever runs, and start it again. Two of them would wait for streams, so they are killed."""
        await (self.kill() if self.name in {"Caddy", "Traefik"} else self.stop(status=None))
        await self.start()

    async def ready(self) -> None:
        """Return when the gateway answers through it."""
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                assert self.running, f"{self.name} ended\n{self.written()}"
                await asyncio.sleep(ASK_AGAIN)

    async def _answers(self) -> bool:
        try:
            async with await request(f"{self.url}/client.js", tls=self.tls) as answer:
                return answer.status == 200
        except OSError:
            return False

    def written(self) -> str:
        """All that it wrote, into its log files too."""
        files = [path.read_text("utf-8", "replace") for path in sorted(self.cwd.glob("*.log"))]
        return "\n".join([*self.stdout, *self.stderr, *files])
