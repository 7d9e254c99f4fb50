"""The kinds of route: one class for each kind, in a file of its own.

A new kind is a subclass of `RouteKind` and an entry here, under the `api` that its routes have in the configuration.
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
