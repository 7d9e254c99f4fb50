"""The command line: `gateway serve | check | schema | hash | --version`.

Exit status: 0 clean, 1 bad configuration, 2 bad usage, 3 cannot bind.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from gateway.config import Config, ConfigError, examine, schema
from gateway.core.credential import MAX_SECRET, digest
from gateway.demo import start_demo
from gateway.process import server, supervisor
from gateway.upstream.inquiry import Report, inquire


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status.
    """
    args = _parser().parse_args(arguments)
    if args.command == "check":
        return _check(args.file or args.config, ask=args.ask)
    if args.command == "schema":
        return _schema()
    if args.command == "hash":
        return _hash()
    return _serve(args.config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="A streaming gateway before LLM backends.")
    parser.set_defaults(command="serve", config=Path("config.yaml"))
    parser.add_argument("--version", action="version", version=f"gateway {version('sse-gateway')}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    checked = "print every error of the configuration, and warn of what cannot work"
    for name, text in (("serve", "run the gateway (the default)"), ("check", checked)):
        command = commands.add_parser(name, help=text, description=text)
        # SUPPRESS, because a default of the subcommand would replace a -c that stands before the subcommand.
        command.add_argument("-c", "--config", type=Path, default=argparse.SUPPRESS, help="default: config.yaml")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -c FILE")
    command.add_argument("--ask", action="store_true", help="ask every target whether it answers, and what it has")
    commands.add_parser("schema", help="print the JSON Schema of the configuration, for editors")
    commands.add_parser("hash", help="read a key on stdin, print the sha256 to put in the configuration")
    parser.add_argument("-c", "--config", type=Path, default=Path("config.yaml"), help="default: config.yaml")
    return parser


def _serve(path: Path) -> int:
    _occupy_standard_descriptors()
    try:
        config, warnings = examine(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    run = server.run if config.server.workers == 1 else supervisor.run
    return run(path, config, warnings=warnings)


def _occupy_standard_descriptors() -> None:
    # If stdout is closed at the start, the next socket gets its number, and `print` writes into the socket.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)


def _schema() -> int:
    try:
        print(json.dumps(schema(), indent=2, ensure_ascii=False), flush=True)
    except BrokenPipeError:
        # The program that reads our output has closed the pipe, as `head` does. Without this, the flush at the end of
        # the interpreter would fail in the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check(path: Path, *, ask: bool) -> int:
    try:
        config, warnings = examine(path)
    except ConfigError as error:
        print(error)
        return 1
    for warning in warnings:
        print(warning)
    if not ask:
        print("ok")
        return 0
    reports = asyncio.run(_ask(config))
    for report in reports:
        print(report)
    return 0 if all(report.serves for report in reports) else 1


async def _ask(config: Config) -> list[Report]:
    demo = (
        await start_demo()
        if any(target.demo for name in config.upstreams.values() for target in name.targets)
        else None
    )
    try:
        reports = await inquire(config, demo.url if demo is not None else "")
        if config.store.shared:
            from gateway.store import inquiry  # it needs redis, which only those install who share a store

            reports.append(Report("store", *await inquiry.inquire(config.store)))
        return reports
    finally:
        if demo is not None:
            await demo.close()


def _hash() -> int:
    try:
        secret = sys.stdin.buffer.readline().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        secret = ""
    if not 0 < len(secret) <= MAX_SECRET:
        print(f"gateway hash: expected one line of 1 to {MAX_SECRET} characters in UTF-8 on stdin", file=sys.stderr)
        return 2
    print(digest(secret))
    return 0
