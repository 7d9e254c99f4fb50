"""What a provider said for people, made fit to be told: as one bounded line, without keys, pages and stack traces, and
without what it quotes of the request.

    plain(text)                        what is left of a provider's text; "" where nothing may be told
    hiding_quotes(sentence, request)   the sentence, with "…" for what it quotes; in steps, because it may take long

Providers quote keys, whole or in part ("sk***89"), in any language; and they quote prompts. Rather too much is taken
out than too little: a word that only looks like a key is lost, a key never stays.
"""

import re
import sys
from collections.abc import Generator
from html import unescape
from typing import Final, NamedTuple

import msgspec

MAX_SENTENCE: Final = 1000
"""Characters of a sentence."""
MIN_SECRET: Final = 8
"""Characters of a known key. A shorter one is a stand-in, as `none` or `ollama`, and an ordinary word."""
MARK: Final = "…"
"""What stands for anything that was taken out."""

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_PAGE: Final = re.compile(
    r"<\s*/?(!doctype|html|head|body|title|center|script|style|div|h[1-6]|p|br|pre)\b", re.IGNORECASE
)
_TRACE: Final = re.compile(
    r"Traceback \(most recent call|\bFile \"[^\"]{1,300}\", line \d|\s+at [\w.$<>\[\] ]{1,200}\(?[^\s()]{1,300}:\d+"
    r"|goroutine \d+ \[|stack backtrace:|\n\s+\d+: 0x",
)

# -- keys ----------------------------------------------------------------------------------------------------------

_URL: Final = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,15}://)(?:[^\s/@'\"<>]{1,500}@)?([^\s?'\"<>)]{0,1000})(\?[^\s'\"<>)]*)?", re.IGNORECASE
)
_NAMED: Final = re.compile(
    r"((?:\b(?:api|access|secret|subscription|auth\w{0,12})[ _-]?(?:key|token|secret)s?\b|\bpassword\b|\bcredentials?\b"
    r"|密钥|令牌|秘钥|api ?key)"
    r"(?:\s*\([^()]{0,20}\))?(?:\s+(?:provided|given|received|used|was|is))?\s*[:=：]\s*)"
    r"['\"`“‘]?[^\s'\"`,;，；。”’]+",
    re.IGNORECASE,
)
"""A key that is introduced: `API key: …`, `令牌：…`."""
_BEARER: Final = re.compile(
    r"\b(Bearer|Basic)\s+(?!token|auth|key|scheme|credential|header|or\b|and\b|is\b)[^\s'\"`,;]{4,}", re.IGNORECASE
)
_PIECE: Final = re.compile(
    r"\b((?:end|start|begin)(?:s|ing|ning)? (?:in|with) ['\"`]?|(?:key|token|secret)=)[^\s'\"`,;)]+", re.IGNORECASE
)
"""A piece of a key: `your key ending in …`."""
_SHORTENED: Final = re.compile(
    r"[A-Za-z0-9_\-]*[*•●]{2,}[A-Za-z0-9_\-*•●]*"  # sk***89, ****97fe
    r"|[A-Za-z0-9_\-]{2,}(?:\.{2,}|…)[A-Za-z0-9_\-]{2,}",  # sk-…5678
)
_PREFIXED: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|ak|xai|gsk|nvapi|pplx|csk|tgp|cpk|hf|fw|r8|gh[opsu]|glpat|xox[a-z]|sess|AKLT)[-_]"
    r"(?=[A-Za-z0-9_\-]{4})|AIza|AKIA|ASIA|ya29\.|eyJ|LTAI)[A-Za-z0-9_\-.=+/]*[A-Za-z0-9_\-=]",
)
"""How the keys of well-known providers begin."""
_LONG: Final = re.compile(r"[A-Za-z0-9_+/=~.\-]{12,}")
_PARTS: Final = re.compile(r"[A-Za-z0-9]+")


def plain(text: str, limit: int = MAX_SENTENCE) -> str:
    """The text as one line of at most `limit` characters, without control characters and without anything like a key.

    Of a text with a stack trace, what stands before it is left; of one with HTML, nothing.
    """
    text = text[: 4 * limit]
    if _PAGE.search(text):
        return ""
    if (trace := _TRACE.search(text)) is not None:
        text = text[: trace.start()]
    return without_keys(clean(text, 2 * limit))[:limit].strip()


def clean(text: str, limit: int = MAX_SENTENCE) -> str:
    """The text as one line of at most `limit` characters, without control characters."""
    return _CONTROLS.sub(" ", text[: limit * 2]).strip()[:limit]


def without_keys(text: str, *secrets: str) -> str:
    """The text with "…" for whatever looks like a key, and for the passwords and queries of URLs.

    Args:
        text: of a bounded length.
        secrets: keys that are known; they are taken out however they look.
    """
    for secret in secrets:
        if len(secret) >= MIN_SECRET:
            text = re.sub(re.escape(secret), MARK, text, flags=re.IGNORECASE)
            text = _without_pieces(text, secret)
    text = _URL.sub(r"\1\2", text)
    text = _NAMED.sub(rf"\1{MARK}", text)
    text = _BEARER.sub(rf"\1 {MARK}", text)
    text = _PIECE.sub(rf"\1{MARK}", text)
    text = _SHORTENED.sub(MARK, text)
    text = _PREFIXED.sub(MARK, text)
    return _LONG.sub(lambda found: MARK if _is_random(found[0]) else found[0], text)


def _without_pieces(text: str, secret: str) -> str:
    """The text without pieces of a key, of at least `MIN_SECRET` characters. What has no digit may be plain words."""
    if not any(map(str.isdigit, secret)) or " " in secret:
        return text
    said, known, at = text.lower(), secret.lower(), 0
    if len(said) != len(text):
        return text  # some letters change their length; then only the whole key is known
    out = []
    while at < len(text):
        end = at + MIN_SECRET
        if said[at:end] not in known or end > len(text):
            out.append(text[at])
            at += 1
            continue
        while end < len(text) and said[at : end + 1] in known:
            end += 1
        out.append(MARK)
        at = end
    return "".join(out)


def _is_random(token: str) -> bool:
    """Whether a long token looks made by a machine. Names of models, parameters and codes do not."""
    return any(_is_random_part(part) for part in _PARTS.findall(token))


def _is_random_part(part: str) -> bool:
    if len(part) < 12 or part.isdigit():
        return False
    if not part.isalpha():
        return True
    capitals = sum(letter.isupper() for letter in part[1:])
    # `AccessDeniedUnpurchased` has a capital for every word; letters at random have one for every second letter.
    return len(part) >= 16 and len(part) // 4 < capitals < len(part) - len(part) // 4


# -- quotes --------------------------------------------------------------------------------------------------------

MAX_REQUEST: Final = 4 * 1024 * 1024
"""Bytes of a request that are compared. A sentence about a longer one is not told at all."""
MAX_TEXTS: Final = 20_000
"""Values of a request that are looked at. A sentence about one that has more is not told at all."""
MAX_PAIRS: Final = 20_000
"""Places of the sentence and of the texts that look alike at first. A sentence that has more is not told at all."""

STEP: Final = 64 * 1024
"""Characters of texts that one step reads. It takes about a millisecond."""

Steps = Generator[None, None, "str"]
"""Work in steps: between two of them others may have their turn. The generator's value is the result."""

_BLOCK: Final = 8
_MIN_RUN: Final = 12
_STEP_PAIRS: Final = 1000
"""Pairs of places that one step compares."""
_SHORT: Final = range(6, 41)
"""Characters of a text that is looked for as a whole. A longer one is found by its pieces."""
_SEARCHED: Final = 256 * 1024
"""Bytes of texts up to which every quoted word is searched in them."""
_NAMES: Final = frozenset(
    {
        "effort",
        "id",
        "model",
        "name",
        "object",
        "role",
        "service_tier",
        "session_id",
        "tool_call_id",
        "tool_use_id",
        "type",
    }
)
"""Members of a request that name something. Their values are no content, and a sentence may say them."""
_TEXTS: Final = frozenset({"system", "prompt", "input", "instructions", "user"})
"""Members of a chat request that are texts, beside its messages."""
_QUOTED: Final = re.compile(
    r"(?<!\w)(?:'[^']{1,400}'|\"[^\"]{1,400}\"|`[^`]{1,400}`|“[^”]{1,400}”|‘[^’]{1,400}’|「[^」]{1,400}」)(?!\w)"
)
_JSON_ESCAPED: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([nrt\"'/\\]))()()")
_ESCAPED: Final = re.compile(
    r"\\+(?:u([0-9a-fA-F]{4})|([nrt\"'/\\]))|((?:\\+x[0-9a-fA-F]{2})+)"
    r"|((?:%[0-9a-fA-F]{2})+)|(?<=\w)\+(?=[\w%])"
)
"""Escapes of JSON (also of JSON in JSON), Python and URLs."""
_json: Final = msgspec.json.Decoder()


def hiding_quotes(sentence: str, request: bytes | bytearray) -> Steps:
    """The sentence, with "…" for what it quotes of the texts in a request: messages, instructions, tools.

    A quote of at least 15 bytes is always found, also one that was cut off, is in another case (of ASCII), or is
    escaped as in JSON, HTML or URLs. So are short texts that are quoted whole, and shorter quotes in quotation marks.
    The names of models and parameters stay.

    The work is bounded and done in steps, of which parsing is one. The request is parsed once, and its texts are read
    once, in steps of 8 bytes. Where there is more than `MAX_REQUEST`, `MAX_TEXTS` or `MAX_PAIRS` allow, the result is
    "…".

    Args:
        sentence: at most `MAX_SENTENCE` characters.
        request: the body that the provider was sent, JSON or not; b"" for none.
    """
    if not sentence or not request:
        return sentence
    return (yield from hiding_texts(sentence, (yield from texts_of(request))))


class Texts(NamedTuple):
    """The texts of a request, for `hiding_texts`.

    Attributes:
        texts: each with single spaces.
        joined: all of them in UTF-8 and in lower case.
    """

    texts: list[str]
    joined: bytes


def texts_of(request: bytes | bytearray) -> Generator[None, None, Texts | None]:
    """The texts of a request, in steps; None where it is too long or has too many values. See `hiding_quotes`."""
    texts = (yield from _texts_of(request)) if len(request) <= MAX_REQUEST else None
    if texts is None:
        return None
    yield
    text = "\n".join(texts)
    yield
    joined = text.encode("utf-8", "replace")
    del text
    yield
    joined = joined.lower()
    yield
    return Texts(texts, joined)


def hiding_texts(sentence: str, request: Texts | None) -> Steps:
    """As `hiding_quotes`, for a request that is read already: of several sentences about one, each costs less."""
    if not sentence:
        return sentence
    if request is None:
        return MARK
    texts, joined = request
    # Read with all escapes; then but for those of JSON as it stands, as they may be signs of the text itself.
    for escaped, read in ((_ESCAPED, unescape), (_JSON_ESCAPED, str)):
        said = " ".join(escaped.sub(_unescaped, read(sentence)).split())
        sentence = yield from _less_quotes(sentence, said, texts, joined)
        if sentence == MARK:
            break
    return sentence


def _less_quotes(sentence: str, said: str, texts: list[str], joined: bytes) -> Steps:
    """The sentence, read as `said`, less the quotes; as it was where there are none."""
    kept = yield from _without_runs(said, joined)
    if len(kept) > len(MARK):
        kept = _without_short(kept, texts, joined)
    return sentence if kept == said else kept


def _unescaped(found: re.Match[str]) -> str:
    unicode, sign, escaped, percents = found.groups()
    if unicode:
        return chr(int(unicode, 16))
    if escaped or percents:
        raw = bytes.fromhex(re.sub(r"[\\x%]", "", escaped or percents))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    return " " if not sign or sign in "nrt" else str(sign)


def _texts_of(request: bytes | bytearray) -> Generator[None, None, list[str] | None]:
    """The texts of a request, with single spaces; None where it has too many values."""
    try:
        value = _json.decode(request)
    except (ValueError, RecursionError):
        value = request.decode("utf-8", "replace")
    yield
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        # A chat request: what else has a text at the top is a parameter, and a sentence about its value is worth much.
        value = {name: member for name, member in value.items() if not isinstance(member, str) or name in _TEXTS}
    # A loop and no recursion, so that the nesting of a client's request does not decide the depth of our stack.
    texts, left, seen, work = [], [value], 0, 0
    while left:
        item = left.pop()
        seen += 1
        work += 64 + (len(item) if isinstance(item, str) else 0)  # a value by itself costs what 64 characters do
        if seen + len(left) > MAX_TEXTS:
            return None
        if isinstance(item, str):
            texts.append((yield from _with_single_spaces(item)))
        elif isinstance(item, dict):
            left.extend(member for name, member in item.items() if name not in _NAMES or not isinstance(member, str))
        elif isinstance(item, list):
            left.extend(item)
        if work >= STEP:
            work = 0
            yield
    return texts


def _with_single_spaces(text: str) -> Steps:
    if len(text) <= STEP:
        return " ".join(text.split())
    out: list[str] = []
    for start in range(0, len(text), STEP):
        yield
        piece = text[start : start + STEP]
        words = " ".join(piece.split())
        parted = piece[0].isspace() or text[start - 1].isspace()
        out += [" " if parted and out and words else "", words]
    return "".join(out).strip()


def _without_runs(said: str, texts: bytes) -> Steps:
    """The sentence without its runs of 15 bytes and more that occur in the texts, which are in lower case."""
    # Providers write texts in other cases, too. In bytes, only ASCII changes its case, and nothing its length.
    raw = said.encode("utf-8", "replace").lower()
    # Any run of 15 bytes has 8 that begin at a multiple of 8 in the texts. So the texts are cut there, as numbers, and
    # compared with all the eights of the sentence.
    eights: dict[int, list[int]] = {}
    for at in range(len(raw) - _BLOCK + 1):
        eights.setdefault(int.from_bytes(raw[at : at + _BLOCK], sys.byteorder), []).append(at)
    blocks = memoryview(texts)[: len(texts) // _BLOCK * _BLOCK].cast("Q")
    quoted, pairs = bytearray(len(raw)), 0
    for start in range(0, len(blocks), STEP // _BLOCK):
        yield
        step = enumerate(blocks[start : start + STEP // _BLOCK], start)
        for place, at in [(place, at) for place, block in step if block in eights for at in eights[block]]:
            pairs += 1
            if pairs > MAX_PAIRS:
                return MARK
            if pairs % _STEP_PAIRS == 0:
                yield
            if not (quoted[at] and quoted[at + _BLOCK - 1]):
                first, last = _run(raw, at, texts, place * _BLOCK)
                if last - first >= _MIN_RUN:
                    quoted[first:last] = b"\1" * (last - first)
    return _marked(said, quoted)


def _run(raw: bytes, at: int, texts: bytes, place: int) -> tuple[int, int]:
    """The run of the sentence around `at` that is the same in the texts around `place`, as far as another eight."""
    start, end, shift = at, at + _BLOCK, place - at
    while start > max(0, at - _BLOCK + 1, -shift) and raw[start - 1] == texts[start - 1 + shift]:
        start -= 1
    while end < min(len(raw), at + 2 * _BLOCK - 1, len(texts) - shift) and raw[end] == texts[end + shift]:
        end += 1
    return start, end


def _marked(text: str, quoted: bytearray) -> str:
    """The sentence with one mark for every quoted run. Characters of which a part is quoted are quoted."""
    out: list[str] = []
    at = 0
    for character in text:
        size = len(character.encode("utf-8", "replace"))
        if not any(quoted[at : at + size]):
            out.append(character)
        elif not out or out[-1] != MARK:
            out.append(MARK)
        at += size
    return "".join(out)


def _without_short(said: str, texts: list[str], joined: bytes) -> str:
    """The sentence without short texts that it quotes whole, and without what it has in quotation marks of a text."""
    short = {text for text in texts if len(text) <= _SHORT.stop}
    for text in short:
        if len(text) in _SHORT and text.lower() in said.lower():
            said = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", MARK, said, flags=re.IGNORECASE)
    lowered = {text.lower() for text in short}

    def hidden(found: re.Match[str]) -> str:
        inner = found[0][1:-1].strip(". …")
        there = inner.lower() in lowered or (
            len(inner) >= _BLOCK and (len(joined) > _SEARCHED or inner.encode("utf-8", "replace").lower() in joined)
        )
        return found[0][0] + MARK + found[0][-1] if there and inner else found[0]

    return _QUOTED.sub(hidden, said)
