"""The rule for a file with the public keys of an issuer of tokens.

Invariant: a file that this rule accepts holds at least one usable key. Its content is part of the value, so that a
reload sees when it changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from gateway.config.rules import Rule

if TYPE_CHECKING:
    from gateway.core.jwk import KeySet

MAX_FILE: Final = 256 << 10
FOLDER: Final = "folder"
"""The entry of the validation's context that says where relative paths start; the working directory without it."""


@dataclass(frozen=True)
class KeyFile:
    """A file with public keys.

    Attributes:
        path: as it is written.
        content: of the file.
    """

    path: str
    content: bytes

    def keys(self) -> "KeySet":
        """The keys in it."""
        from gateway.core.jwk import read_key_file  # it takes long, and only those who use tokens need it

        return read_key_file(self.content)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class KeyFileRule(Rule):
    """The path of a file with public keys. A relative one starts at the folder of the configuration."""

    @property
    def allowed(self) -> str:
        return "the path of a PEM file with the issuer's public key or certificate, or of a JWKS, of up to 256 KiB"

    def parse(self, value: object, folder: Path | None = None) -> KeyFile:
        if not isinstance(value, str) or not 0 < len(value) <= 4096 or "\0" in value:
            raise self.refusal("a path")
        # Only regular files: a pipe or a device could block the reload, or never end.
        path = (folder or Path()) / value
        try:
            if not path.is_file():
                raise self.refusal("a file that exists")
            with path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}; allowed: {self.allowed}") from None
        if len(content) > MAX_FILE:
            raise self.refusal("small enough")
        key_file = KeyFile(value, content)
        try:
            key_file.keys()
        except ValueError as error:
            raise ValueError(f"cannot be used, as {error}; allowed: {self.allowed}") from None
        return key_file

    def show(self, value: KeyFile | None) -> str | None:
        return None if value is None else value.path

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 4096}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._parse_in_folder)

    def _parse_in_folder(self, value: object, info: ValidationInfo) -> KeyFile | None:
        folder = info.context.get(FOLDER) if info.context else None
        return None if self.optional and value is None else self.parse(value, folder)
