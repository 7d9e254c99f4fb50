"""What the stand-in says: a request in, an `Answer` out, always the same one for the same request.

The language is the last user's: Chinese for Chinese, English for everything else. Deltas are cut between characters,
a word or one or two Chinese characters each, so that they look like a tokenizer's.
This file does not know chunks, sockets or clocks; speeds are figures to it.
"""

import re
from typing import Final, Literal, NamedTuple

import msgspec

from gateway.demo.protocol import ChatRequest, Delta, Message, joined
from gateway.demo.texts import TEXTS, Texts

Fault = Literal["", "error", "busy", "cut", "stall"]
FAULTS: Final[tuple[Fault, ...]] = ("error", "busy", "cut", "stall")
RATES: Final = {"slow": 6.0, "fast": 300.0}
RATE: Final = 30.0
LONG_PARAGRAPHS: Final = 24
EXCERPT: Final = 120

_HINT: Final = re.compile(
    r"(?<![A-Za-z0-9/.:_-])[/／](long|slow|fast|think|tool|history|error|busy|cut|stall)(?![A-Za-z0-9/_-])"
)
_TOKEN: Final = re.compile(r"[\u3400-\u9fff]{1,2}| ?[A-Za-z0-9]{1,10}| ?[!-/:-@\[-`{-~]{1,4}|\s+|.", re.DOTALL)
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_KANA: Final = re.compile(r"[\u3040-\u30ff]")


class Answer(NamedTuple):
    """What is sent, how fast, and what goes wrong.

    Attributes:
        deltas: one token each.
        finish_reason: OpenAI's.
        rate: deltas a second, above 0.
        fault: "" for none; `cut` and `stall` strike after half of the deltas, the others before the first.
    """

    deltas: tuple[Delta, ...]
    finish_reason: str = "stop"
    rate: float = RATE
    fault: Fault = ""


def answer(request: ChatRequest) -> Answer:
    """The answer to a request; a last message of the assistant's is continued, and then nothing goes wrong."""
    asked = _last(request.messages, "user")
    hints = set(_HINT.findall(asked))
    deltas = _deltas(request.messages, hints, TEXTS[_language(request.messages)])
    finish_reason = "tool_calls" if "tool_calls" in deltas[-1] else "stop"
    whole = Answer(deltas, finish_reason, _rate(hints), _fault(hints))
    if request.messages[-1].role == "assistant":
        whole = _continued(whole, request.messages[-1].text)
    return _limited(whole, request.longest)


def tokens(text: str) -> list[str]:
    """The pieces a tokenizer might make of a text; joined they are the text."""
    return _TOKEN.findall(text)


def prompt_tokens(messages: list[Message]) -> int:
    """Tokens of a conversation, with a few for the frame of each message as OpenAI counts them."""
    return 3 + sum(4 + len(tokens(message.text)) for message in messages)


def _deltas(messages: list[Message], hints: set[str], texts: Texts) -> tuple[Delta, ...]:
    reasoning = _spoken(texts.thinking, "reasoning_content") if "think" in hints else ()
    if messages[-1].role == "tool":
        return reasoning + _spoken(texts.tool_result.format(result=_excerpt(messages[-1].text)))
    if "tool" in hints:
        return reasoning + _spoken(texts.tool_intro) + _called(texts.tool_name, texts.tool_arguments)
    if "history" in hints:
        return reasoning + _spoken(_history(messages, texts))
    return reasoning + _spoken(_essay(messages, hints, texts))


def _essay(messages: list[Message], hints: set[str], texts: Texts) -> str:
    question = _excerpt(_HINT.sub("", _last(messages, "user"))) or texts.nothing
    turn = sum(message.role == "user" for message in messages)
    middle = texts.long.format if "long" in hints else None
    paragraphs = [middle(number=number) for number in range(1, LONG_PARAGRAPHS + 1)] if middle else []
    return "\n\n".join([texts.intro.format(question=question), *paragraphs, texts.outro.format(turn=turn)])


def _history(messages: list[Message], texts: Texts) -> str:
    lines = [f"{number}. {message.role}: {_excerpt(message.text)}" for number, message in enumerate(messages, 1)]
    return "\n".join([texts.history.format(count=len(messages)), "", *lines])


def _spoken(text: str, key: str = "content") -> tuple[Delta, ...]:
    return tuple({key: piece} for piece in tokens(text))


def _called(name: str, arguments: dict[str, str]) -> tuple[Delta, ...]:
    call = {"index": 0, "id": "call_demo_1", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = tokens(msgspec.json.encode(arguments).decode())
    return ({"tool_calls": [call]}, *({"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces))


def _continued(whole: Answer, prefix: str) -> Answer:
    text = joined(whole.deltas, "content")
    rest = text.removeprefix(prefix) or "\n"
    return whole._replace(deltas=_spoken(rest), finish_reason="stop", fault="")


def _limited(whole: Answer, longest: int | None) -> Answer:
    if longest is None or len(whole.deltas) <= longest:
        return whole
    return whole._replace(deltas=whole.deltas[:longest], finish_reason="length")


def _language(messages: list[Message]) -> Literal["zh", "en"]:
    """The language of the last user message that has a word in it besides hints."""
    said = (_HINT.sub("", message.text).strip() for message in reversed(messages) if message.role == "user")
    text = next(filter(None, said), "")
    return "zh" if _HAN.search(text) and not _KANA.search(text) else "en"


def _last(messages: list[Message], role: str) -> str:
    return next((message.text for message in reversed(messages) if message.role == role), "")


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT else flat[:EXCERPT] + "…"


def _rate(hints: set[str]) -> float:
    return next((RATES[hint] for hint in RATES if hint in hints), RATE)


def _fault(hints: set[str]) -> Fault:
    return next((fault for fault in FAULTS if fault in hints), "")
