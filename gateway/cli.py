"""The command line: `gateway serve | check | schema | hash`.

Exit status: 0 clean, 1 bad configuration, 2 bad usage, 3 cannot bind.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.config import ConfigError, load, schema
from gateway.core.credential import MAX_SECRET, digest
from gateway.process import server, supervisor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status.
    """
    args = _parser().parse_args(arguments)
    if args.command == "check":
        return _check(args.config)
    if args.command == "schema":
        return _schema()
    if args.command == "hash":
        return _hash()
    return _serve(args.config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="A streaming gateway before LLM backends.")
    parser.set_defaults(command="serve", config=Path("config.yaml"))
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, text in (("serve", "run the gateway (the default)"), ("check", "print every error of the configuration")):
        command = commands.add_parser(name, help=text, description=text)
        # SUPPRESS, because a default of the subcommand would replace a -c that stands before the subcommand.
        command.add_argument("-c", "--config", type=Path, default=argparse.SUPPRESS, help="default: config.yaml")
    commands.add_parser("schema", help="print the JSON Schema of the configuration, for editors")
    commands.add_parser("hash", help="read a key on stdin, print the sha256 to put in the configuration")
    parser.add_argument("-c", "--config", type=Path, default=Path("config.yaml"), help="default: config.yaml")
    return parser


def _serve(path: Path) -> int:
    _occupy_standard_descriptors()
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return server.run(path, config) if config.server.workers == 1 else supervisor.run(path, config)


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


def _check(path: Path) -> int:
    try:
        load(path)
    except ConfigError as error:
        print(error)
        return 1
    print("ok")
    return 0


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
