"""Tickets behind the real nginx, with logs that show whole URLs, as most have: nothing in them works afterwards."""

import re
from pathlib import Path

from tests.conftest import StartGateway
from tests.kit.program import Nginx, curl
from tests.kit.sse_client import request
from tests.kit.upstream import Exchange, Hang, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head
from tests.web.stage import eventually, question_of

OWN_PAGE = "Sec-Fetch-Site: same-origin"
SECRET = "sk-never-in-a-url"
CONFIG = f"""
server: {{trusted_proxies: [127.0.0.1/32]}}
auth: {{keys: [{{id: web, key: {SECRET}}}], tickets: {{ttl: 1s}}}}
upstreams: {{main: {{dialect: openai, targets: [{{url: "%s/v1"}}]}}}}
routes:
  - {{path: /api/chat, api: chat, upstream: main}}
  - {{path: /api/other, api: chat, upstream: main}}
limits: {{per_address: {{requests: null, connections: null}}}}
"""


def script(asked: Exchange) -> list[Step]:
    return openai_answer("whole") if question_of(asked) == "short" else [sse_head(), openai_delta("cut"), Hang()]


async def test_no_ticket_in_a_log_works_afterwards(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with ScriptedUpstream(script) as upstream:
        gateway = await start_gateway(CONFIG % upstream.url)
        directory = tmp_path / "nginx"
        directory.mkdir()
        nginx = Nginx(gateway.url.removeprefix("http://"), directory)
        conf = directory / "gateway.conf"
        said = (
            conf.read_text()
            .replace("access.log gateway;", "access.log combined;")
            .replace("error.log crit;", "error.log info;")
        )
        assert "combined" in said
        assert "info" in said
        conf.write_text(said)
        async with nginx:
            https = ("--cacert", str(nginx.certificate), "-sS")

            async def status(url: str, *options: str) -> str:
                return (await curl(*https, "-o", "/dev/null", "-m", "5", "-w", "%{http_code}", *options, url))[-1][1]

            async def bought() -> str:
                headers = {"Authorization": f"Bearer {SECRET}"}
                async with await request(f"{gateway.url}/tickets", method="POST", headers=headers) as answer:
                    return str((await answer.json())["ticket"])

            await curl(*https, f"{nginx.url}/api/chat?message=short&ticket={await bought()}")
            await curl(*https, "-m", "1", f"{nginx.url}/api/chat?message=endless&ticket={await bought()}", status=28)

            async def logs() -> str:
                return nginx.access_log.read_text() + nginx.error_log.read_text() + nginx.output() + gateway.output()

            text = await eventually(logs, lambda text: text.count("ticket=") >= 2)
            assert SECRET not in text
            logged = dict.fromkeys(re.findall(r"(/\S*ticket=([\w-]+))", text))
            assert len(logged) == 2
            for path, ticket in logged:
                assert await eventually(lambda path=path: status(nginx.url + path), lambda code: code == "401")  # type: ignore[misc]
                for url, *options in (
                    (nginx.url + path, "--interface", "127.0.0.2"),
                    (nginx.url + path, "-X", "POST"),
                    (nginx.url + path.replace("/chat", "/other"),),
                    (f"{nginx.url}/tickets?ticket={ticket}", "-X", "POST"),
                    (f"{nginx.url}/api/chat?message=x&token={ticket}",),
                    (f"{nginx.url}/api/chat?message=x", "-H", f"Authorization: Bearer {ticket}"),
                    (
                        f"{nginx.url}/api/chat?message=x",
                        "-b",
                        f"gateway_token={ticket}",
                        "-H",
                        "Sec-Fetch-Site: same-origin",
                    ),
                ):
                    assert await status(url, *options) == "401", (url, options)
            assert len(upstream.exchanges) == 2
