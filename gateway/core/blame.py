"""Which of the things that the gateway added to a request a provider's refusal is about.

A server may know less of OpenAI's API than the gateway uses. If it refuses a request for something that the client
never asked for, the client must not be told so: the request is sent again without it. No two servers say it in the same
words, so there are three rules, the most exact first:

1. The refusal names what was added.
2. It speaks of an unknown member, and names none of the client's own.
3. It says nothing at all, as `{"error": "Bad Request"}`.

The last two hold only while the target was never seen to accept what was added.
"""

import re
from collections.abc import Collection
from typing import Final

PREFIX: Final = "prefix"
"""The beginning of an answer that is to be continued, as one of the things that were added."""
STREAM: Final = "stream"
"""That a stream is asked for, where the client did not ask for one by itself."""
DEVELOPER: Final = "developer"
"""The role `developer`, which OpenAI made of `system`. A request without it has `system` instead."""

MAX_WORDS: Final = 8 * 1024
"""Characters of a refusal that are looked at."""

_NAMES: Final[dict[str, str]] = {
    STREAM: r"\"param\":\s*\"stream\"|\bto stream\b"
    r"|(?<!non-)\bstream(ing|s)?\b.{0,40}(not|n't|un)\W?(currently )?(support|allow|permit|avail|enable)"
    r"|(not|n't) (currently )?(support|allow|permit)\w* stream|\bstream\b\W{1,4}(must|should|has to) be \W?false"
    r"|\bset \W?stream\W{0,2}(=|to) ?\W?false",
    "stream_options": r"stream.?options?\b|include.?usage",
    "reasoning_effort": r"reasoning|thinking|\bthink\b|budget_tokens|output_config|\beffort",
    DEVELOPER: r"developer|\brole",
    PREFIX: r"continue_final_message|add_generation_prompt|prefill|\bassistant\b|last message|final message",
}
"""How refusals name what was added, where the name alone is not enough."""
_UNKNOWN: Final = re.compile(
    r"extra (inputs?|fields?|keys?|parameters?)|extraneous|additional propert|not (permitted|recogni[sz]ed)"
    r"|(unknown|unexpected|unrecogni[sz]ed|unsupported|invalid|illegal) (request )?"
    r"(field|parameter|param|argument|key|keyword|property|input|member|option)"
)
_EMPTY: Final = re.compile(
    r"bad.?request|invalid.?request|unprocessable.?(entity|content)|(validation|request|client) (error|failed)"
    r"|\b(errors?|messages?|msg|detail|type|code|param|status|object|title|success|false|true|null|none|invalid)\b"
    r"|[\W\d_]"
)


def blamed(words: str, added: Collection[str], *, own: Collection[str] = (), taken: Collection[str] = ()) -> set[str]:
    """What of `added` the refusal is about; empty where it is about something else.

    Args:
        words: all that the provider said, JSON or not.
        added: parameters, `PREFIX`, `STREAM` and `DEVELOPER`.
        own: the members of the client's own request.
        taken: what the target was seen to accept.
    """
    said = words[:MAX_WORDS].lower()
    named = {name for name in added if re.search(_NAMES.get(name, rf"\b{re.escape(name.lower())}\b"), said)}
    if "stream_options" in named:
        named.discard(STREAM)
    if named:
        # Roles are named beside other things, and the list of the roles that are known has `assistant` in it.
        roles = {DEVELOPER} if "developer" in said else {DEVELOPER, PREFIX}
        return named - {DEVELOPER, PREFIX} or named & roles or named
    guessed = set(added) - set(taken) - {DEVELOPER, PREFIX, STREAM}
    if not guessed or not (_speaks_of_unknown(said, own) or not _EMPTY.sub("", said.replace("_", " "))):
        return set()
    return {"stream_options"} if "stream_options" in guessed else guessed


def _speaks_of_unknown(said: str, own: Collection[str]) -> bool:
    if not _UNKNOWN.search(said):
        return False
    return not any(re.search(rf"\b{re.escape(name.lower())}\b", said) for name in own)
