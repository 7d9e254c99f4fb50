"""What the stand-in says."""

import pytest

from gateway.demo.answers import answer, tokens
from gateway.demo.protocol import ChatRequest, Message, joined


def ask(*texts: str, role: str = "user", longest: int | None = None) -> ChatRequest:
    return ChatRequest([Message(role, text) for text in texts], max_tokens=longest)


def said(request: ChatRequest) -> str:
    return joined(answer(request).deltas, "content")


def test_model_answers_in_the_language_of_the_question() -> None:
    assert said(ask("什么是事件流？")).startswith("你问的是：“什么是事件流？”")
    assert said(ask("What is SSE?")).startswith("You asked: “What is SSE?”")


def test_model_keeps_the_language_when_only_a_hint_is_said() -> None:
    assert said(ask("你好", "/long")).startswith("你问的是：“（没有具体问题）”")


@pytest.mark.parametrize("text", ["Write a haiku about a river", "Haiku, please!", "写一首关于河流的短诗"])
def test_model_knows_one_poem(text: str) -> None:
    lines = said(ask(text)).split("\n\n")[0].split("\n")
    assert len(lines) == 3
    assert all(line.startswith("> ") for line in lines)
    assert said(ask(f"{text} /long")) != said(ask(text))


@pytest.mark.parametrize("text", ["When has a quadratic equation two roots?", "二次方程的求根公式是什么？"])
def test_model_knows_one_lesson(text: str) -> None:
    assert [mark in said(ask(text)) for mark in ("$$", "|---|", "```python")] == [True] * 3


@pytest.mark.parametrize("text", ["请/slow一点", "／slow please", "(/slow)"])
def test_model_finds_a_hint_anywhere(text: str) -> None:
    assert answer(ask(text)).rate < answer(ask("x")).rate


@pytest.mark.parametrize("text", ["see https://x.example/long", "/longer", "a/long", "/long/path"])
def test_model_takes_no_path_for_a_hint(text: str) -> None:
    assert len(answer(ask(text)).deltas) < 400


def test_model_takes_about_seven_seconds_and_a_minute_when_long() -> None:
    short, long = answer(ask("你好")), answer(ask("你好 /long"))
    assert 5 < len(short.deltas) / short.rate < 9
    assert 40 < len(long.deltas) / long.rate < 80


def test_model_says_the_same_twice() -> None:
    assert answer(ask("hi /think")) == answer(ask("hi /think"))


def test_model_reasons_before_it_answers() -> None:
    kinds = [next(iter(delta)) for delta in answer(ask("hi /think")).deltas]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}


def test_model_lists_what_it_was_sent() -> None:
    request = ChatRequest([Message("system", "Be brief."), Message("user", "/history")])
    assert said(request) == "Messages I was sent: 2\n\n1. system: Be brief.\n2. user: /history"


def test_model_calls_a_tool_and_uses_its_result() -> None:
    request = ask("天气 /tool")
    assert answer(request).finish_reason == "tool_calls"
    request.messages.append(Message("tool", "晴，25 度"))
    assert said(request) == "工具的回答是：晴，25 度"


def test_model_continues_what_the_assistant_began_and_then_nothing_fails() -> None:
    whole = said(ask("hi /cut"))
    rest = answer(ChatRequest([Message("user", "hi /cut"), Message("assistant", whole[:40])]))
    assert joined(rest.deltas, "content") == whole[40:]
    assert rest.fault == ""


def test_model_stops_at_max_tokens() -> None:
    short = answer(ask("hi", longest=5))
    assert (len(short.deltas), short.finish_reason) == (5, "length")


def test_tokens_joined_are_the_text() -> None:
    text = "你好，world! 🌊\r\n  a_b —“引号”"
    assert "".join(tokens(text)) == text
    assert max(map(len, tokens(text))) <= 11
