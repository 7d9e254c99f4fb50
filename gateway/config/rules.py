"""The rules for single values: how a value is written, what its bounds are, and what an editor is told about it.

A rule stands beside a type, as in `Annotated[float, Seconds("0s", "1h")]`. Nothing else knows how that value is
written.

Invariants:

- A message never holds the value that was refused, as it may be part of a secret.
- Every message names what is allowed.

This file does not know keys, lines or files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from gateway.core.rate import PATTERN as RATE
from gateway.core.rate import Rate, parse_rate

UNITS_OF_TIME: Final[dict[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
UNITS_OF_SIZE: Final[dict[str, int]] = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

DURATION: Final = r"[0-9]{1,9}(?:\.[0-9]{1,3})?(?:ms|s|m|h)"
SIZE: Final = r"[0-9]{1,12}(?:B|KiB|MiB|GiB)"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of value.

    Attributes:
        optional: whether null stands for "none".
    """

    optional: bool = False

    @property
    def allowed(self) -> str:
        """What may be written, as a phrase that follows `allowed: `."""
        raise NotImplementedError

    def parse(self, value: object) -> Any:
        """The value as the program uses it.

        Raises:
            ValueError: it is not allowed; the message says what is.
        """
        raise NotImplementedError

    def show(self, value: Any) -> Any:
        """The value as a user would write it."""
        return value

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what a user may write."""
        raise NotImplementedError

    def refusal(self, what: str) -> ValueError:
        """The error for a value that is not `what`."""
        return ValueError(f"is not {what}; allowed: {self.allowed}{' or null' if self.optional else ''}")

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # A plain validator: pydantic does not look at the type beside the rule, so nothing else converts the value.
        return core_schema.no_info_plain_validator_function(self._parse_optional)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.schema(), {"type": "null"}]} if self.optional else self.schema()

    def _parse_optional(self, value: object) -> Any:
        return None if self.optional and value is None else self.parse(value)


@dataclass(frozen=True)
class Seconds(Rule):
    """A duration as float seconds, from `low` to `high`.

    Attributes:
        low: the shortest, as a user writes it. Where it is `0s`, the number 0 is accepted too.
        high: the longest, as a user writes it.
        word: a word that stands for None; "" if there is none.
    """

    low: str
    high: str
    word: str = ""

    @property
    def allowed(self) -> str:
        return f"{self.low} to {self.high}{f', or {self.word}' if self.word else ''}"

    def parse(self, value: object) -> float | None:
        if self.word and value == self.word:
            return None
        if type(value) is int and value == 0:  # not False, which equals 0
            value = "0s"
        if not isinstance(value, str) or not re.fullmatch(DURATION, value):
            raise self.refusal("a duration (written like 250ms, 15s, 5m or 1h)")
        seconds = parse_duration(value)
        if not parse_duration(self.low) <= seconds <= parse_duration(self.high):
            raise self.refusal("in range")
        return seconds

    def show(self, value: float | None) -> str | None:
        return self.word or None if value is None else show_duration(value)

    def schema(self) -> dict[str, Any]:
        written = f"{DURATION}|{self.word}" if self.word else DURATION
        text = {"type": "string", "pattern": f"^(?:{written})$"}
        return {"anyOf": [text, {"const": 0}]} if self.low == "0s" else text


@dataclass(frozen=True)
class Bytes(Rule):
    """A size as whole bytes, from `low` to `high`, both as a user writes them."""

    low: str
    high: str

    @property
    def allowed(self) -> str:
        return f"{self.low} to {self.high}"

    def parse(self, value: object) -> int:
        if not isinstance(value, str) or not re.fullmatch(SIZE, value):
            raise self.refusal("a size (written like 512B, 64KiB, 4MiB or 1GiB)")
        size = parse_size(value)
        if not parse_size(self.low) <= size <= parse_size(self.high):
            raise self.refusal("in range")
        return size

    def show(self, value: int) -> str:
        return show_size(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{SIZE}$"}


@dataclass(frozen=True)
class PerTime(Rule):
    """A `Rate`."""

    @property
    def allowed(self) -> str:
        return "an amount above 0 and a window, as in 10/s, 60/min, 1000/h, 100000/day"

    def parse(self, value: object) -> Rate:
        if not isinstance(value, str):
            raise self.refusal("a rate")
        return parse_rate(value)

    def show(self, value: Rate | None) -> str | None:
        return None if value is None else str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{RATE}$"}


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def allowed(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def parse(self, value: object) -> int:
        if type(value) is not int:  # True is an `int` too, but not a number here
            raise self.refusal("a whole number")
        if not self.low <= value <= self.high:
            raise self.refusal("in range")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class OneOf(Rule):
    """One of some names.

    Attributes:
        names: what is allowed. It is read anew for every value, so a name that is added later is allowed too.
    """

    names: Mapping[str, object]

    @property
    def allowed(self) -> str:
        return ", ".join(self.names)

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise self.refusal("known here")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names)}


@dataclass(frozen=True)
class Text(Rule):
    """Text of `low` to `high` characters.

    Attributes:
        pattern: what the whole text must match, in syntax that Python and ECMA 262 share; "" for anything.
        says: the pattern in words.
        blank: whether an empty text means null, as `${VAR:-}` gives it where VAR is not set.
    """

    low: int
    high: int
    pattern: str = ""
    says: str = ""
    blank: bool = False

    @property
    def allowed(self) -> str:
        length = f"{self.high} characters" if self.low == self.high else f"{self.low} to {self.high} characters"
        return f"{length} of {self.says}" if self.says else length

    def parse(self, value: object) -> str | None:
        if not isinstance(value, str):
            raise self.refusal("text (put it in quotes)")
        if self.blank and not value:
            return None
        if not self.low <= len(value) <= self.high:
            raise (
                self.refusal("of a length that can be used")
                if value
                else ValueError(f"is empty; allowed: {self.allowed}")
            )
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise self.refusal("made of the right characters")
        return value

    def schema(self) -> dict[str, Any]:
        low = 0 if self.blank else self.low
        schema: dict[str, Any] = {"type": "string", "minLength": low, "maxLength": self.high}
        return schema | {"pattern": f"^(?:{self.pattern})$"} if self.pattern else schema


@dataclass(frozen=True)
class QueryValue(Rule):
    """The value of a query's parameter, as text; a number is written as JSON writes it."""

    @property
    def allowed(self) -> str:
        return "text of up to 1024 characters, or a number"

    def parse(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.refusal("text or a number (put it in quotes)")
        text = value if isinstance(value, str) else repr(value)
        if len(text) > 1024 or re.search(r"[\x00-\x1f\x7f]", text):
            raise self.refusal("one line of a length that can be used")
        return text

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "maxLength": 1024}, {"type": "number"}]}


@dataclass(frozen=True)
class Json(Rule):
    """Any value, which is sent as JSON."""

    @property
    def allowed(self) -> str:
        return "any value"

    def parse(self, value: object) -> Any:
        return value

    def schema(self) -> dict[str, Any]:
        return {}


def parse_duration(text: str) -> float:
    """The seconds that `text` stands for; `text` must match `DURATION`."""
    unit = text.lstrip("0123456789.")
    return round(float(text.removesuffix(unit)) * UNITS_OF_TIME[unit], 6)  # 0.001 has no exact binary form


def parse_size(text: str) -> int:
    """The bytes that `text` stands for; `text` must match `SIZE`."""
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * UNITS_OF_SIZE[unit]


def show_duration(seconds: float) -> str:
    """`seconds` as a user would write them, in the largest unit that gives a whole number."""
    unit = next(
        (name for name in ("h", "m", "s") if seconds >= UNITS_OF_TIME[name] and not seconds % UNITS_OF_TIME[name]), "ms"
    )
    return f"{seconds / UNITS_OF_TIME[unit]:.12g}{unit}" if seconds else "0s"


def show_size(size: int) -> str:
    """`size` as a user would write it, in the largest unit that gives a whole number."""
    unit = next(name for name, factor in reversed(UNITS_OF_SIZE.items()) if not size % factor)
    return f"{size // UNITS_OF_SIZE[unit]}{unit}"
