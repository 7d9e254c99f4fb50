"""Commands and programs in documents do what is said there.

- A block of shell commands that has `curl` or `gateway` in it is run by bash in the repository's folder.
- It talks to a real gateway with the configuration of the last `yaml` block before it in the same document (completed
  as `tests/docs/config.py` says), or with the shipped one where there is none.
- The gateway's addresses are those of the test; behind named targets stands the stand-in of the program, or one of the
  same dialect; every variable that the document's configurations mention has a value for the gateway and the commands.
- A `text` block behind it, in the same section, is what is printed. In it `…` is anything within a line, and a line
  that is only `…` any lines.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.docs.config import variables
from tests.docs.conftest import Serve, here
from tests.docs.markdown import Block, answered
from tests.kit.program import ROOT, find_program

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN = re.compile(r"\b(curl -|gateway (check|hash|schema))")
COMMANDS = [(block, answer) for block, answer in answered("sh") if RUN.search(block.text)]
PROGRAMS = list(answered("python"))


async def run(*command: str, env: dict[str, str]) -> str:
    """What a command prints; its status must be 0."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=os.environ | env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode().replace("\r\n", "\n")


def check(printed: str, expected: Block | None) -> None:
    """What is printed is what the document says."""
    if expected is not None:
        wanted = "".join(map(pattern, expected.text.rstrip("\n").splitlines()))
        assert re.fullmatch(wanted + r"\n*", f"{printed}\n"), f"{expected} is not what is printed:\n{printed}"


def pattern(line: str) -> str:
    """What a line of a `text` block stands for, as a regular expression."""
    return r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*?") + r"\n"


@pytest.mark.parametrize(("block", "answer"), COMMANDS, ids=str)
async def test_commands_print_what_is_said(block: Block, answer: Block | None, serve: Serve) -> None:
    find_program("curl", "curl")
    command = ("bash", "-euc", here(block.text, await serve(block)))
    check(await run(*command, env=variables(block.document.read_text("utf-8"))), answer)


@pytest.mark.parametrize(("block", "answer"), PROGRAMS, ids=str)
async def test_programs_print_what_is_said(block: Block, answer: Block | None, serve: Serve) -> None:
    env = {"SECRET_KEY": "a secret that signs sessions"}
    check(await run(sys.executable, "-c", here(block.text, await serve(block)), env=env), answer)
