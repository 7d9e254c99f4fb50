from pathlib import Path
from typing import Any

import pytest

from gateway.config.document import Document
from gateway.config.expand import Expander


def read(text: str, **environ: str) -> Document:
    return Document(text, Expander(environ, Path()))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("22:30", "22:30"),
        ("2027-01-31", "2027-01-31"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("010", 10),
        ("-3", -3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("9" * 19, 1e19),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ('"true"', "true"),
        ("'5'", "5"),
        ("你好，世界。", "你好，世界。"),
    ],
)
def test_document_gives_scalars_one_reading(text: str, value: Any) -> None:
    read_value = read(f"a: {text}").data["a"]
    assert read_value == value
    assert type(read_value) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${N}", 8),
        ('"${N}"', "8"),
        ("${T}", True),
        ("${E}", ""),
        ("${Z:-null}", "null"),
        ("1${N}", 18),
        ("${F}", "1.5"),
    ],
)
def test_document_reads_a_replaced_plain_scalar_as_number_boolean_or_text(text: str, value: Any) -> None:
    read_value = read(f"a: {text}", N="8", T="true", E="", F="1.5").data["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_document_never_reads_a_replacement_as_yaml() -> None:
    assert read("a: ${X}", X="{b: 1}\nc: 2").data == {"a": "{b: 1}\nc: 2"}


def test_document_knows_the_line_of_every_key_and_item() -> None:
    document = read("a:\n  - b: 1\n    c:\n      d: 2\n  - 5\n")
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("a", 0): 2,
        ("a", 0, "b"): 2,
        ("a", 0, "c"): 3,
        ("a", 0, "c", "d"): 4,
        ("a", 1): 5,
    }
    assert document.line(("a", 0, "nothing", "here")) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", (3, ("a",), "is there twice; allowed: each key once")),
        ("a: &x 1\n", (1, (), "holds an anchor (&name); allowed: no anchors, write the value out")),
        ("a: 1\nb: *x\n", (2, (), "holds an alias (*name); allowed: write the value out")),
        ("a: !!int 1\n", (1, (), "holds a tag (!name); allowed: no tags")),
        ("a:\n  <<: {b: 1}\n", (2, ("a", "<<"), "merge keys are not supported; allowed: write the keys out")),
        ("? [a, b]\n: 1\n", (1, (), "a key must be a word; allowed: text")),
        ("a: b\x07\n", (1, (), "holds a control character; allowed: printable text, tab and line feed")),
        ('a: "\\ud800"\n', (1, ("a",), "holds bytes that are not UTF-8; allowed: text")),
        (
            "a: 1\n\tb: 2\n",
            (2, (), "is not YAML: there is a tab, which YAML does not take for space here; write spaces"),
        ),
        (
            "a: 1\n---\nb: 1\n",
            (2, (), "is not YAML: a second document begins here (---); allowed: one"),
        ),
        ("a: {{ b }}\n", (1, ("a",), "holds {{ … }}, which is not replaced here; allowed: ${NAME}")),
        ("[" * 33, (1, (), "is not YAML: it is nested too deeply; allowed: 32 levels")),
    ],
)
def test_document_names_what_is_ambiguous(text: str, problem: Any) -> None:
    assert read(text).problems == [problem]


def test_document_of_a_billion_laughs_stays_small() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 20))
    document = read(f"l0: &l0 ha\n{levels}\n")
    assert document.data["l19"] == [""] * 10
    assert len(document.problems) == 20 + 190


def test_document_without_content_is_an_empty_mapping() -> None:
    assert read("# nothing\n").data == {}
