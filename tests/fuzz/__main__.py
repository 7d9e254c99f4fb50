"""`python -m tests.fuzz [--seconds 60] [--inputs N] [--seed N] [--processes 1] [--only sse …]` tries inputs.

It ends when its time is over, or when every target has had its part of the inputs. `--bytes` tries one input again.
"""

import argparse
import ast
import random
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.fuzz.run import FRONT, Order, Tally, run, try_again
from tests.fuzz.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something was found."""
    names = [*TARGETS, FRONT]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Tries inputs on all that reads bytes.")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most; 0 for as long as --inputs take")
    parser.add_argument("--inputs", type=int, default=0, help="of all targets and processes together; 0 for no limit")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--processes", type=int, default=1, help="side by side, each with a seed of its own")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of one process, above which it is ended")
    parser.add_argument("--only", nargs="*", choices=names, default=names, metavar="TARGET", help=", ".join(names))
    parser.add_argument("--bytes", help="one input for the one target of --only, as a finding shows it")
    options = parser.parse_args(arguments)
    if options.bytes is not None:
        return try_again(options.only[0], ast.literal_eval(options.bytes))
    if not options.seconds and not options.inputs:
        parser.error("one of --seconds and --inputs must be above 0")
    orders = [
        Order(
            tuple(options.only),
            options.seconds or float("inf"),
            options.inputs // options.processes,
            options.seed + number,
            options.memory << 20,
        )
        for number in range(options.processes)
    ]
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell that starts it in the background has SIGINT ignored
        signal.signal(stop, signal.default_int_handler)
    tally = Tally()
    if len(orders) == 1:
        tally.add(run(orders[0]))
    else:
        with ProcessPoolExecutor(len(orders), get_context("spawn")) as pool:
            for part in pool.map(run, orders):
                tally.add(part)
    print(tally.table(), flush=True)
    return int(bool(tally.found))


if __name__ == "__main__":
    sys.exit(main())
