"""How much the gateway costs: the same paced streams through nginx, the gateway and Envoy, one after another.

    upstream.py  --->  nginx | gateway | Envoy  --->  client.py
    paced, stamped      one of `programs.py`           checks every event, measures some
                              ^
                        measure.py reads /proc

The nouns, and where each of them lives:

Pace         How many events an answer has and how many of them a second; it travels in the prompt. `marks.py`
Mark         What stands in each delta: its number and the time of its writing. `marks.py`
Stream       One request of the load client, from connect to the last byte. `client.py`
Load         Many streams at once. `client.py`
Program      What is measured: how it is started, configured and recognised. `programs.py`
Stage        A program that runs, with the upstream behind it. `programs.py`
Scenario     What is asked of every program. `scenarios.py`
Measurement  What one scenario cost one program in one run. `measure.py`
Report       Medians, and their ratios to nginx. `report.py`

Everything is on 127.0.0.1, and every program is ended by its process id. Absolute times of one machine prove nothing,
so each figure stands beside nginx's of the same run, and the programs take turns so that noise hits all of them.
"""
