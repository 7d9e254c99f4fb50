"""Texts that are no YAML in, the line where the mistake begins out."""

from pathlib import Path

import pytest

from gateway.config.document import Document
from gateway.config.expand import Expander

QUOTE = "a quote is opened here and "
TAB = "there is a tab, which YAML does not take for space here; write spaces"
COLON = "a space is missing after a colon"
INDENT = "the indentation here fits none of the lines before"
VALUES = "no colon can be here; put the text in quotes, or indent the key as those beside it"
SIGN = "a value cannot begin with this character; put it in quotes"
STAR = 'a value cannot begin with * outside quotes; write "*"'
FULL = "the colon here is ：; write an ASCII colon and a space"
REFERENCE = 'inside [ ] or { } a reference has to be in quotes, as "${NAME}"'
BEHIND = "text stands behind a closing quote; write a quote inside ' ' twice"
COMMA = "a comma is missing before this, or a quote"


def wrong(text: str) -> list[tuple[int, str]]:
    """Line and reason of everything that is wrong."""
    return [
        (line, reason.removeprefix("is not YAML: "))
        for line, _, reason in Document(text, Expander({}, Path())).problems
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        # a quote
        ('a: 1\nb: "x\nc: 2\nd: 3\n', 2, QUOTE + "never closed"),
        ("a: 1\nb: 'x\nc: 2\n", 2, QUOTE + "never closed"),
        ('a: 1\nb: "x\nc: "y"\nd: 3\n', 2, QUOTE + "not closed before line 3"),
        ('a: 1\nb: "x\nc: 5\nd: 3\ne: "y"\nf: 1\n', 2, QUOTE + "not closed before line 5"),
        ("a: 1\nb: 'x\nc: 'y'\nd: 3\n", 2, QUOTE + "not closed before line 3"),
        ('r:\n  - {id: a, key: "x}\n  - {id: b, key: "y"}\n', 2, QUOTE + "not closed before line 3"),
        ('r:\n  - {id: a, key: "x}\n  - {id: b, key: y}\n', 2, QUOTE + "never closed"),
        ('a: "x\n---\nb: 1\n', 1, QUOTE + "never closed"),
        # a bracket
        ("a: [1, 2\nb: 3\n", 1, "a [ is opened here and never closed"),
        ("x: 1\na: [1, 2\n", 2, "a [ is opened here and never closed"),
        ("a: [1, [2, 3]\nb: 3\n", 1, "a [ is opened here and never closed"),
        ("a: [\n  1,\n  2\nb: 3\nc: 4\n", 1, "a [ is opened here and never closed"),
        ("r:\n  - {path: /a, api: chat\n  - {path: /b, api: chat}\nz: 1\n", 2, "a { is opened here and never closed"),
        ("r: [\n  {path: /a,\n  {path: /b}]\nz: 1\n", 1, "a [ is opened here and never closed"),
        ("a: {b: 1\nc: 2\nd: 3\n", 1, "a { is opened here and never closed"),
        ("a: 'it''s'\nc: [1 # x]\nd: 2\n", 2, "a [ is opened here and never closed"),
        ("a: [1, 2}\nb: 1\n", 1, "while parsing a flow sequence expected ',' or ']', but got '}'"),
        ("a: {\n  b: 1\n  c: 2\n}\n", 3, COMMA),
        # a tab
        ("a:\n\tb: 1\n", 2, TAB),
        ("a:\n  b: 1\n\tc: 2\n", 3, TAB),
        ("a:\n  b:\t1\n", 2, TAB),
        ("a: {\n\tb: 1}\n", 2, TAB),
        # a colon
        ("server:\n  listen:8080\n  workers: 1\n", 2, COLON),
        ("server:\n  workers: 1\n  listen:8080\nb: 1\n", 3, COLON),
        ("s:\n  a: 1\n  b:2\n  c: 3\n  d: 4\n", 3, COLON),
        ("a:1\nb: 2\n", 1, COLON),
        ("r:\n  - path:/a\n    api: chat\n", 2, COLON),
        ("r:\n  - path: /a\n    up: m\n    api:chat\n", 4, COLON),
        ("s:\n  a: 1\n  b\n  c: 3\n", 3, "a colon is missing"),
        ("a: b: c\n", 1, VALUES),
        ("s:\n  a b\n  c: 3\n", 2, "a colon is missing"),
        ("s:\n  a：b\n  c: 3\n", 2, FULL),
        ("s:\n  c: 3\n  a： b\n", 3, FULL),
        # a character that begins something else
        ("a: 1\nb: @x\n", 2, SIGN),
        ("a: 1\nb: `x`\n", 2, SIGN),
        ("a: [*]\n", 1, STAR),
        ("a: 1\nb: *\n", 2, STAR),
        ("a: {b: ${X}, c: 1}\n", 1, REFERENCE),
        ("a: [\n  {b: ${X, c: 1}]\nd: 2\n", 2, REFERENCE),
        ("a: 1\nb: [1,\n  ${X:-y}]\n", 3, REFERENCE),
        ('a: 1\nb: "C:\\users"\n', 2, "a backslash inside \" \" begins an escape; write ' ' around the text"),
        # what stands too much, or too little
        ("a: 1\nb: 'it's'\n", 2, BEHIND),
        ("a: 1\nb: [1]]\n", 2, "a bracket is closed here that was never opened"),
        ('a: {\n  b: 1,\n  c: "x" d: "y"}\n', 3, COMMA),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here (---); allowed: one"),
        # an indentation
        ("server:\n  listen: a\n    workers: 1\n", 3, VALUES),
        ("server:\n    listen: a\n  workers: 1\n", 3, INDENT),
        ("routes:\n  - path: /a\n   api: chat\n", 3, INDENT),
        ("a:\n  b: 1\n  - c\n", 3, INDENT),
        (" a: 1\nb: 2\n", 1, "the key here is indented, unlike the one in line 2"),
    ],
)
def test_mistake_is_named_where_it_begins(text: str, line: int, reason: str) -> None:
    assert wrong(text) == [(line, reason)]


def test_mistake_in_a_text_that_is_nested_without_end_is_found_at_once() -> None:
    assert wrong("routes: " + "[" * 50_000) == [(1, "it is nested too deeply; allowed: 32 levels")]


@pytest.mark.parametrize("text", ["a: |\n  [ \"it's\n  b:c\n", "a: x\n  y:z\nb: 1\n", 'a: "x\n  y"\nb: [1,\n  2]\n'])
def test_text_over_several_lines_is_no_mistake(text: str) -> None:
    assert wrong(text) == []
