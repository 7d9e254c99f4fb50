"""The supervisor of several workers: when it starts them again, and what keeps it from starting them at all."""

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.process.supervisor import FIRST_DELAY, LONGEST_DELAY, STEADY, Backoff
from tests.conftest import StartGateway
from tests.kit.ledger import Scrape
from tests.kit.program import Gateway, free_port, free_ports
from tests.kit.sse_client import request

Settings = Callable[..., dict[str, Any]]


def config(**server: Any) -> dict[str, Any]:
    return {
        "server": {"workers": 2, "admin_listen": f"127.0.0.1:{free_ports(2)}", "drain": "0s"} | server,
        "auth": {"anonymous": True},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": "http://127.0.0.1:9/v1"}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main"}],
    }


def test_worker_that_dies_at_once_is_started_twice_as_late_each_time() -> None:
    backoff = Backoff()
    assert [backoff.delay(0.0) for _ in range(4)] == [FIRST_DELAY * factor for factor in (1, 2, 4, 8)]


def test_worker_that_dies_for_ever_is_started_for_ever() -> None:
    backoff = Backoff()
    assert max(backoff.delay(0.0) for _ in range(10_000)) == LONGEST_DELAY


def test_worker_that_lived_a_while_is_started_almost_at_once() -> None:
    backoff = Backoff(deaths=20)
    assert (backoff.delay(STEADY), backoff.delay(0.0)) == (FIRST_DELAY, 2 * FIRST_DELAY)


async def test_workers_share_the_port_and_have_admin_ports_in_a_row(start_gateway: StartGateway) -> None:
    settings = config(listen="127.0.0.1:0")
    gateway = await start_gateway(settings)
    lines = [await gateway.logged("serving", worker=number) for number in (0, 1)]
    assert lines[0]["url"] == lines[1]["url"]
    host, first = gateway.admin.rsplit(":", 1)
    assert [line["admin"] for line in lines] == [gateway.admin, f"{host}:{int(first) + 1}"]
    for line in lines:
        async with await request(f"{line['admin']}/metrics") as answer:
            scrape = Scrape((await answer.body()).decode())
        assert scrape.total("gateway_worker_restarts_total") == 0
        assert scrape.total("process_start_time_seconds") > 0


async def test_workers_without_admin_listener_serve_and_end(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(config(admin_listen=None))
    lines = [await gateway.logged("serving", worker=number) for number in (0, 1)]
    assert [line["admin"] for line in lines] == [None, None]
    await gateway.stop()
    ends = [(line["event"], line["worker"]) for line in gateway.log_lines() if line["event"] != "serving"]
    assert sorted(ends) == [("drained", 0), ("drained", 1), ("draining", 0), ("draining", 1)]
    assert list(gateway.stderr) == []


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2)])
async def test_second_gateway_on_the_port_is_refused(
    start_gateway: StartGateway, tmp_path: Path, first: int, second: int
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    await start_gateway(config(listen=listen, workers=first))
    assert await failure(config(listen=listen, workers=second), tmp_path) == (3, address_in_use(listen))


async def test_admin_port_of_the_last_worker_must_be_free(start_gateway: StartGateway, tmp_path: Path) -> None:
    port = free_ports(2)
    await start_gateway(config(workers=1, admin_listen=f"127.0.0.1:{port + 1}"))
    status = await failure(config(admin_listen=f"127.0.0.1:{port}"), tmp_path)
    assert status == (3, address_in_use(f"127.0.0.1:{port + 1}"))


async def test_bad_configuration_is_told_once(tmp_path: Path) -> None:
    status, said = await failure(config(drain="soon"), tmp_path)
    assert (status, said.count("server.drain")) == (1, 1)


async def test_gateway_whose_first_worker_cannot_start_ends(tmp_path: Path) -> None:
    few = f"ulimit -n 14; exec {shlex.quote(sys.executable)} -m gateway"
    status, said = await failure(config(), tmp_path, ["sh", "-c", f'{few} "$@"', "sh"])
    assert (status, "worker_died" in said, "serving" in said) == (1, False, False)


def address_in_use(address: str) -> str:
    return f"cannot listen on {address}: Address already in use\n"


async def failure(settings: dict[str, Any], directory: Path, command: list[str] | None = None) -> tuple[int, str]:
    """The status and the output of a gateway that ends by itself."""
    gateway = Gateway(settings, directory)
    gateway.write_config(gateway.config)
    command = [*command, *gateway.command[1:]] if command else gateway.command
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode is not None
    return process.returncode, output.decode()
