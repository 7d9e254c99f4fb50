"""What the stand-in says: a request in, a `Script` out, always the same one for the same request.

The language is that of the last message of the user: Chinese for Chinese, English for everything else. Deltas are cut
between characters, a word or one or two Chinese characters each, so that they look like those of a tokenizer.
This file does not know chunks, sockets or clocks: a speed is only a number here.
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
_POEM: Final = re.compile(r"\b(haikus?|poems?)\b|俳句|短诗|诗歌|写.{0,6}诗", re.IGNORECASE)
_LESSON: Final = re.compile(r"\bquadratic\b|二次方程|求根公式", re.IGNORECASE)
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_KANA: Final = re.compile(r"[\u3040-\u30ff]")


class Script(NamedTuple):
    """What is sent, how fast, and what goes wrong.

    Attributes:
        deltas: one token each.
        finish_reason: OpenAI's.
        rate: deltas a second, above 0.
        fault: "" for none; `cut` and `stall` happen after half of the deltas, the others before the first.
    """

    deltas: tuple[Delta, ...]
    finish_reason: str = "stop"
    rate: float = RATE
    fault: Fault = ""


def answer(request: ChatRequest) -> Script:
    """The script for a request. If the last message is the assistant's, it is continued, and nothing goes wrong."""
    asked = _last(request.messages, "user")
    hints = set(_HINT.findall(asked))
    deltas = _deltas(request.messages, hints, TEXTS[_language(request.messages)])
    reason = "tool_calls" if "tool_calls" in deltas[-1] else "stop"
    rate = next((RATES[hint] for hint in RATES if hint in hints), RATE)
    fault: Fault = next((fault for fault in FAULTS if fault in hints), "")
    # The beginning of an answer is continued without the fault, so that the rescue of a broken answer succeeds.
    if request.messages[-1].role == "assistant":
        rest = joined(deltas, "content").removeprefix(request.messages[-1].text)
        deltas, reason, fault = _spoken(rest or "\n"), "stop", ""
    if request.longest is not None and len(deltas) > request.longest:
        deltas, reason = deltas[: request.longest], "length"
    return Script(deltas, reason, rate, fault)


def tokens(text: str) -> list[str]:
    """Pieces as a tokenizer might make them; joined they are the text."""
    return _TOKEN.findall(text)


def prompt_tokens(messages: list[Message]) -> int:
    """The tokens of a conversation, with a few for the frame of each message as OpenAI counts them."""
    return 3 + sum(4 + len(tokens(message.text)) for message in messages)


def _deltas(messages: list[Message], hints: set[str], texts: Texts) -> tuple[Delta, ...]:
    reasoning = _spoken(texts.thinking, "reasoning_content") if "think" in hints else ()
    if messages[-1].role == "tool":
        return reasoning + _spoken(texts.tool_result.format(result=_excerpt(messages[-1].text)))
    if "tool" in hints:
        return reasoning + _spoken(texts.tool_intro) + _called(texts.tool_name, texts.tool_arguments)
    if not hints and _POEM.search(_last(messages, "user")):
        return reasoning + _spoken(texts.poem)
    if not hints and _LESSON.search(_last(messages, "user")):
        return reasoning + _spoken(texts.lesson)
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


def _language(messages: list[Message]) -> Literal["zh", "en"]:
    """The language of the last user message that has any word besides hints."""
    said = (_HINT.sub("", message.text).strip() for message in reversed(messages) if message.role == "user")
    text = next(filter(None, said), "")
    return "zh" if _HAN.search(text) and not _KANA.search(text) else "en"


def _last(messages: list[Message], role: str) -> str:
    return next((message.text for message in reversed(messages) if message.role == role), "")


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT else flat[:EXCERPT] + "…"
