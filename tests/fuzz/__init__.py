"""Fuzzing that stays: `make fuzz` for as long as you like, and some inputs in every test run.

    mutate.py      one input becomes another
    target.py      what a target is: seeds, and a check that raises where a promise is broken
    answers.py     what providers send, and what browsers get of it      requests.py   what clients send
    credentials.py tokens, keys, tickets, cookies, addresses             settings.py   what operators write
    client.py      what client.js reads, in Node (client.mjs)
    front.py       raw requests to a running gateway
    run.py         whose turn it is, what is counted, what a finding says; __main__.py is the command
    corpus.py      inputs that once found a mistake; each is tried in every test run

A new reader of strangers' bytes is a `Target` in one of these files. A run prints its seed: the same seed makes the
same inputs for each target in process, however fast the machine is. A finding is printed with its bytes, and with the
command that tries them again; then they belong into `corpus.py`.
"""
