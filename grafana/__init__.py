"""The dashboards of Grafana, written in Python and kept as JSON.

`python -m grafana` writes `dashboards/*.json`; a test fails when they differ from what is written here. `panels.py`
knows how Grafana wants things, `boards.py` what an operator wants to see.
"""
