"""The reading of /proc, of this very process."""

import os
import subprocess
import sys

from bench.measure import Moment, cpu_seconds, family, resident_kib


def test_family_has_the_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(family(os.getpid()))
        child.communicate()


def test_cpu_of_a_process_grows_while_it_works() -> None:
    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) < before + 0.01:
        pass


def test_nothing_costs_nothing() -> None:
    assert (cpu_seconds([]), resident_kib([])) == (0, 0)
    assert Moment.now([], []).shares().program == 0
