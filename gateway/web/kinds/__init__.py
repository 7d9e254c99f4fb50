"""The kinds of route: one class for each kind, in a file of its own.

A new kind is a subclass of `RouteKind` and an entry here, under the `api` that its routes have in the configuration;
`config/model.py` has the model of such routes.

Beside them: `chat_source.py`, how a chat's answer is read; `models.py`, the list of models beside an openai route;
`ui.py`, the bodies of the AI SDK, which is a format of `chat` routes and no kind.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gateway.web.kinds.base import Asked, KindFactory, RouteKind
from gateway.web.kinds.chat import Chat
from gateway.web.kinds.openai import OpenAI
from gateway.web.kinds.proxy import Proxy

KINDS: Final[Mapping[str, KindFactory]] = MappingProxyType({"chat": Chat, "openai": OpenAI, "proxy": Proxy})

__all__ = ["KINDS", "Asked", "Chat", "KindFactory", "OpenAI", "Proxy", "RouteKind"]
