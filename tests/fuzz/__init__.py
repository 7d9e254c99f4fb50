"""Fuzzing that stays: `make fuzz` for as long as you like, and a few thousand inputs in every test run.

    mutate.py     one input becomes another
    targets.py    what reads bytes of strangers in process, and what must hold for every input
    front.py      raw requests to a running gateway
    corpus.py     inputs that once found a mistake; each is tried in every test run
    __main__.py   the command

A new reader of strangers' bytes is a `Target` in `TARGETS`: some seeds and a function that raises where a promise is
broken. A run prints its seed; the same seed makes the same inputs.
"""
