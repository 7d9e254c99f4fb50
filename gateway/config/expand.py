"""The references `${…}` in scalars, and what replaces them: an environment variable, a default, or a file's content.

    ${VAR}            the variable; an error where it is not defined
    ${VAR:-default}   the default where the variable is not defined or empty
    ${VAR:?message}   an error with this message where the variable is not defined or empty
    ${file:/path}     the content of a file of at most 64 KiB, without the line feeds at its end
    $$                a dollar sign

A bare `$name` is left as it is. References inside a replacement are not replaced again, and a default holds no `}`.

Invariants:

- No message holds the value of a variable or the content of a file.
- All replacements by one `Expander` together are at most 4 MiB.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

MAX_FILE: Final = 64 << 10
MAX_TOTAL: Final = 4 << 20

_REFERENCE: Final = re.compile(r"\$\$|\$\{([^{}]*)\}?")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-|:\?)(.*))?", re.DOTALL)
_FORMS: Final = "${NAME}, ${NAME:-default}, ${NAME:?message}, ${file:/path}, and $$ for a dollar sign"


class Expander:
    """Replaces the references in the scalars of one config.

    Args:
        environ: the variables.
        folder: relative paths of `${file:…}` start here.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self._environ = environ
        self._folder = folder
        self._total = 0

    def expand(self, text: str) -> str:
        """`text` with its references replaced.

        Raises:
            ValueError: a variable is not defined, a file cannot be read, or a reference is malformed.
        """
        return _REFERENCE.sub(self._replace, text) if "$" in text else text

    def _replace(self, match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if not match[0].endswith("}"):
            raise ValueError(f"holds a ${{ that is not closed; allowed: {_FORMS}")
        value = self._value(match[1])
        # One file of 64 KiB may be put in by thousands of references of a few bytes each.
        self._total += len(value)
        if self._total > MAX_TOTAL:
            raise ValueError("the values put into this file are too long; allowed: 4 MiB together")
        return value

    def _value(self, reference: str) -> str:
        variable = _VARIABLE.fullmatch(reference)
        if variable:
            return self._variable(variable[1], variable[2] or "", variable[3] or "")
        if reference.startswith("file:"):
            return self._file(reference.removeprefix("file:"))
        raise ValueError(f"holds a reference that is not understood; allowed: {_FORMS}")

    def _variable(self, name: str, operator: str, argument: str) -> str:
        value = self._environ.get(name)
        if operator == ":?" and not value:
            raise ValueError(f"the environment variable {name} is not set: {argument or 'it is required'}")
        if operator == ":-" and not value:
            return argument
        if value is None:
            raise ValueError(
                f"the environment variable {name} is not defined; allowed: define it, or ${{{name}:-default}}"
            )
        return value

    def _file(self, name: str) -> str:
        # Only regular files: a pipe or a device could block the reload, or never end.
        path = self._folder / name
        if not path.is_file():
            raise ValueError(f"the file {name} does not exist or is no regular file")
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE:
            raise ValueError(f"the file {name} is too large; allowed: 64 KiB")
        return _text(content, name)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"the file {name} is not UTF-8 text") from None
