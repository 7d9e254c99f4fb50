"""The config: what a file may say, read once, with every mistake named by file, line and key.

`load` goes through these files: `document.py` reads YAML strictly and keeps the lines, `expand.py` puts variables and
files in, `model.py` says which keys exist and why their defaults are what they are (`rules.py`, `addresses.py` and
`formatting.py` say how single values are written), `checks.py` looks at what must agree, `schema.py` tells editors.

Nothing in here is called while a request is served: the rest of the program reads attributes of a frozen `Config`.
"""

from gateway.config.addresses import DEMO, Address
from gateway.config.loader import load, load_text
from gateway.config.model import (
    Auth,
    Batch,
    ChatRoute,
    Config,
    Cors,
    History,
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
    "History",
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
    "Stream",
    "Target",
    "Timeouts",
    "Upstream",
    "load",
    "load_text",
    "schema",
]
