from pathlib import Path

import pytest

from gateway.config.expand import MAX_FILE, Expander

ENVIRON = {"KEY": "s3cret", "EMPTY": "", "NESTED": "${KEY}"}


def expand(text: str, folder: Path | None = None) -> str:
    return Expander(ENVIRON, folder or Path()).expand(text)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${KEY}", "s3cret"),
        ("a ${KEY} b ${KEY}", "a s3cret b s3cret"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-http://a:1/b}", "http://a:1/b"),
        ("${EMPTY:-d}", "d"),
        ("${KEY:-d}", "s3cret"),
        ("${KEY:?needed}", "s3cret"),
        ("${NESTED}", "${KEY}"),
        ("$$", "$"),
        ("$${KEY}", "${KEY}"),
        ("$text costs 5$", "$text costs 5$"),
    ],
)
def test_expander_replaces_references_and_nothing_else(text: str, expanded: str) -> None:
    assert expand(text) == expanded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NONE}", r"the environment variable NONE is not defined; allowed: define it, or \$\{NONE:-default\}"),
        ("${NONE:?ask Ann}", "the environment variable NONE is not set: ask Ann"),
        ("${EMPTY:?}", "EMPTY is not set: it is required"),
        ("${KEY", "holds a .* not closed; allowed: "),
        ("${1}", "not understood; allowed: "),
        ("${}", "not understood"),
        ("${KEY:+x}", "not understood"),
        ("${file:nothing}", "the file nothing does not exist"),
        ("${file:/dev/zero}", "no regular file"),
    ],
)
def test_expander_says_what_is_wrong_with_a_reference(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(text)


def test_expander_reads_a_file_less_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"s3cret\r\n")
    assert expand("${file:key}", tmp_path) == expand(f"${{file:{tmp_path}/key}}") == "s3cret"


def test_expander_bounds_a_file(tmp_path: Path) -> None:
    (tmp_path / "fits").write_bytes(b"x" * MAX_FILE)
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    assert len(expand("${file:fits}", tmp_path)) == MAX_FILE
    with pytest.raises(ValueError, match="too large; allowed: 64 KiB"):
        expand("${file:large}", tmp_path)
    with pytest.raises(ValueError, match="is not UTF-8"):
        expand("${file:binary}", tmp_path)


def test_expander_bounds_all_that_it_puts_in(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * MAX_FILE)
    with pytest.raises(ValueError, match="allowed: 4 MiB together"):
        expand("${file:file}" * 65, tmp_path)
