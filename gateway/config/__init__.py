"""The config: the file is read once, and every mistake in it is reported with file, line and key.

`load` goes through these files in this order:

    document.py   reads YAML strictly and notes the line of every key
    mistakes.py   finds the line where a mistake in YAML begins
    expand.py     replaces `${…}` by variables and files
    model.py      says which keys exist, and why their defaults are what they are; `rules.py`, `addresses.py` and
                  `formatting.py` say how single values are written
    checks.py     compares keys with one another
    cautions.py   warns of what is allowed, but cannot work or is dangerous
    problems.py   words what is wrong

`schema.py` turns the model into a JSON Schema for editors. Nothing in this folder is called while a request is served:
the rest of the program reads the attributes of a frozen `Config`.
"""

from gateway.config.addresses import DEMO, Address
from gateway.config.loader import Examined, examine, examine_text, load, load_text
from gateway.config.model import (
    Auth,
    Batch,
    ChatRoute,
    Config,
    Cors,
    Forward,
    History,
    Jwt,
    Key,
    Limits,
    Log,
    OnDisconnect,
    OpenAIRoute,
    Params,
    PerAddress,
    Plan,
    ProxyRoute,
    Resume,
    Route,
    Server,
    Store,
    Stream,
    Target,
    Timeouts,
    Upstream,
)
from gateway.config.problems import ConfigError, Problem
from gateway.config.schema import schema

__all__ = [
    "DEMO",
    "Address",
    "Auth",
    "Batch",
    "ChatRoute",
    "Config",
    "ConfigError",
    "Cors",
    "Examined",
    "Forward",
    "History",
    "Jwt",
    "Key",
    "Limits",
    "Log",
    "OnDisconnect",
    "OpenAIRoute",
    "Params",
    "PerAddress",
    "Plan",
    "Problem",
    "ProxyRoute",
    "Resume",
    "Route",
    "Server",
    "Store",
    "Stream",
    "Target",
    "Timeouts",
    "Upstream",
    "examine",
    "examine_text",
    "load",
    "load_text",
    "schema",
]
