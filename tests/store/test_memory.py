"""Where the store is memory, nothing of the shared store is imported, and nothing is asked of it."""

import subprocess
import sys

from tests.kit.program import ROOT

STARTED = """
import asyncio, sys
from gateway.app import make_app
from gateway.config import Config, History

async def main():
    upstream = {"dialect": "openai", "targets": [{"url": "http://127.0.0.1:9/v1"}]}
    route = {"path": "/chat", "api": "chat", "upstream": "main"}
    config = {"auth": {"anonymous": True, "tickets": {}}, "upstreams": {"main": upstream}, "routes": [route]}
    app = await make_app(Config.model_validate(config))
    gateway = app.gateway
    parts = gateway.chats, gateway.shared_tickets, gateway.revocations, gateway.history("/chat", History()).behind
    assert parts == (None,) * 4, parts
    await app.close()
    found = [name for name in sys.modules if name.split(".")[0] == "redis" or name.startswith("gateway.store")]
    assert found == [], found

asyncio.run(main())
"""


def test_memory_costs_nothing_of_the_shared_store() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], cwd=ROOT, capture_output=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr.decode()
