"""A server that knows only its own models, as a script for `ScriptedUpstream`, in three dialects.

Its base URL ends in the dialect's name. A chat with another model, or with none, is refused as the real servers do; its
list of models is what it was given.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from tests.faults.stage import ending, opening
from tests.kit.upstream import Exchange, Step, response

LISTS = {"openai": "/models", "anthropic": "/models", "ollama": "/api/tags"}


class OwnModels:
    """The script.

    Attributes:
        names: its models, in the order of its list; may change.
        needs: whether a chat has to name one.
        answer: what the list is answered with in place of the list, None for the list.
    """

    def __init__(self, *names: str, needs: bool = True) -> None:
        self.names = list(names)
        self.needs = needs
        self.answer: Sequence[Step] | None = None

    def __call__(self, exchange: Exchange) -> Sequence[Step]:
        parts = urlsplit(exchange.target)
        dialect = parts.path.split("/")[1]
        if exchange.method == "GET":
            return self._list(dialect, parts.path.removeprefix(f"/{dialect}"))
        model = exchange.json().get("model")
        if model not in self.names and (model or self.needs):
            return [response(404 if model else 400, _refusal(dialect, model))]
        return [*opening(dialect, "Hi"), *ending(dialect)]

    def _list(self, dialect: str, path: str) -> Sequence[Step]:
        if path != LISTS[dialect]:
            return [response(404, "{}")]
        if self.answer is not None:
            return self.answer
        key, name = ("models", "name") if dialect == "ollama" else ("data", "id")
        return [response(200, msgspec.json.encode({key: [{name: model} for model in self.names]}))]


def _refusal(dialect: str, model: str | None) -> bytes:
    said = f"model {model!r} not found" if model else "you must provide a model parameter"
    if dialect == "ollama":
        return msgspec.json.encode({"error": said if model else "model is required"})
    code = "model_not_found" if model else None
    return msgspec.json.encode({"error": {"message": said, "type": "invalid_request_error", "code": code}})


def lists(exchanges: Sequence[Exchange]) -> int:
    """How often the list was asked for."""
    return sum(exchange.method == "GET" for exchange in exchanges)


def asked(exchanges: Sequence[Exchange]) -> list[str | None]:
    """The models of the chats, in order; None where one named none."""
    return [exchange.json().get("model") for exchange in exchanges if exchange.method == "POST"]
