"""Request bodies: bounded in size, time and memory, and JSON of the expected types or one clear error.

    read_body --bytes, reserved--> json_object: weighed, then parsed, each large body in turns of its own (`turns.py`)

Invariants:

- A body is in memory only as far as `server.max_inflight_bytes` has room for it and for what is made of it. What is
  reserved of that is the exchange's, until a generation takes it over (`admission.py`).
- What a parser would take, in time and memory, is known before it begins (`core/weight.py`).
"""

import asyncio
import codecs
import re
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from aiohttp import StreamReader, hdrs, web

from gateway.core.errors import GatewayError
from gateway.core.weight import TooMuchError, weighing
from gateway.streams.turns import finished
from gateway.web.aiohttp_internals import forget_body
from gateway.web.exchange import COPIES, Exchange, listed

BODY_TIME: Final = 10.0
"""Seconds for a body, and one more for every `BODY_RATE` bytes that came: a slow upload has the time that it needs."""
BODY_RATE: Final = 32 * 1024
"""Bytes a second that an upload of more than `BODY_TIME` has to keep up."""

MAX_ITEMS: Final = 10_000
"""Items of one array, such as the messages. Decoding a hundred thousand would hold up all other streams."""
MANY: Final = 2 * MAX_ITEMS
"""Bytes of a value from which on it may have too many items. Others have their turn between two passes over it."""
_items: Final = msgspec.json.Decoder(tuple[(msgspec.Raw,) * MAX_ITEMS]).decode  # type: ignore[misc]
"""Decodes an array of exactly so many items. It stops at the first one too many."""

LARGE: Final = 4 * 1024
"""Bytes from which on bodies are parsed one after the other, and all else has its turn between two."""
UNHELD: Final = 64 * 1024
"""Bytes that a connection may have sent anyway. A larger body is not read before there is room for it."""
WIDE_COPIES: Final = 6
"""What JSON may take whose characters are wide. So much is reserved until it is known how wide they are: where all took
more only then, each would wait for what the others hold."""
COME_BACK: Final = 5.0

FORM: Final = "application/x-www-form-urlencoded"
MAX_FIELDS: Final = 100
"""Fields of a form, at most."""

_BEGINS_AS_JSON: Final = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*[{\[]")
_FIRST_HALF: Final = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])")
"""An escape that is the first half of a surrogate pair, without a second one behind it."""

Body = bytes | bytearray
"""A body that came in several pieces stays in the buffer that they were put into."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def ask_for_body(request: web.BaseRequest) -> None:
    """Sends "100 Continue" to a client that waits for it, unless the body is there already.

    Source: RFC 9110 10.1.1.
    """
    waits = listed(request.headers, hdrs.EXPECT).lower() == "100-continue" and request.version >= (1, 1)
    if waits and request.transport is not None and not request.content.is_eof():
        request.transport.write(CONTINUE)


async def read_body(exchange: Exchange, copies: int = COPIES) -> Body:
    """The whole body of a request that is unread; the exchange has reserved the memory for it (`exchange.memory`).

    Args:
        exchange: the request.
        copies: how many times its size is reserved while it arrives.

    Raises:
        GatewayError: `body_too_large`, `request_timeout`, `bad_request` for an encoding that is not understood,
            `overloaded` where there is no room for it.
    """
    request, limit = exchange.request, exchange.snapshot.config.server.max_body
    if listed(request.headers, hdrs.CONTENT_ENCODING).lower() not in ("", "identity"):
        raise GatewayError("bad_request", "Content-Encoding is not supported for requests; send the body as it is.")
    announced = request.content_length or 0
    if announced > limit:
        raise _too_large(limit)
    if announced > UNHELD:
        await reserve(exchange, announced * copies)
    ask_for_body(request)
    content = request.content
    try:
        body: Body
        # Most bodies came with their head. They need no time limit, which would cost a timer.
        body = content.read_nowait() if content.is_eof() else await _arriving(exchange, content, limit * copies)
    except TimeoutError:
        raise GatewayError("request_timeout") from None
    except web.RequestPayloadError as error:
        raise GatewayError("bad_request", "The body is cut off or malformed.") from error
    if len(body) > limit:
        raise _too_large(limit)
    if body:
        forget_body(content)
        await reserve(exchange, len(body) * copies)
    return body


async def read_small_body(request: web.BaseRequest, limit: int) -> bytes:
    """The whole body of a request that may be read more than once. Raises as `read_body`.

    Args:
        request: one whose body is unread, or was read by this function.
        limit: bytes at most; below 1 MiB.
    """
    if listed(request.headers, hdrs.CONTENT_ENCODING).lower() not in ("", "identity"):
        raise GatewayError("bad_request", "Content-Encoding is not supported for requests; send the body as it is.")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    ask_for_body(request)
    try:
        async with asyncio.timeout(BODY_TIME):
            body = await request.read()
    except TimeoutError:
        raise GatewayError("request_timeout") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except web.RequestPayloadError as error:
        raise GatewayError("bad_request", "The body is cut off or malformed.") from error
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def reserve(exchange: Exchange, size: int) -> None:
    """Returns when the request has so many bytes of `server.max_inflight_bytes`, at once or after a bounded wait.

    Raises:
        GatewayError: `overloaded`.
    """
    memory, inflight = exchange.memory, exchange.gateway.inflight
    if memory is None:
        exchange.memory = await inflight.reserve(size)
    if exchange.memory is None or (memory is not None and not await memory.change(size)):
        exchange.limit = "server.max_inflight_bytes"
        raise GatewayError("overloaded", "Too many large requests are being answered.", retry_after=COME_BACK)


async def _arriving(exchange: Exchange, content: StreamReader, most: int) -> bytearray:
    body, arriving, limit = bytearray(), exchange.gateway.arriving, exchange.snapshot.config.server.max_body
    async with asyncio.timeout(BODY_TIME) as timeout:
        while True:
            if exchange.memory is not None:
                # What is taken lets in as much again. So of many bodies that come at once, one is let in in a turn.
                async with arriving:
                    pass
            if not (part := await content.readany()):
                break
            body += part
            if len(body) > limit:
                break
            if exchange.memory is None and len(body) > UNHELD:
                waited = timeout.when() or 0.0
                timeout.reschedule(None)  # it is not the client that is slow now
                before = exchange.gateway.clock.now()
                await reserve(exchange, most)  # it has no length, and may become as large as any
                timeout.reschedule(waited + exchange.gateway.clock.now() - before)
            timeout.reschedule((timeout.when() or 0.0) + len(part) / BODY_RATE)
    return body


async def read_json_object(exchange: Exchange) -> dict[str, Any]:
    """The body, which must be one JSON object. Raises as `read_body`, and `bad_request` for anything else."""
    return await json_object(exchange, await read_body(exchange, WIDE_COPIES))


async def read_fields(exchange: Exchange) -> dict[str, Any]:
    """The fields of the body, which is a JSON object or an HTML form's. Raises as `read_json_object`.

    The bytes decide, as many a JSON body is sent with a form's label. A form's fields are strings; of several with one
    name the last one counts, as in JSON.

    Source: WHATWG URL 5.1.
    """
    body = await read_body(exchange, WIDE_COPIES)
    kind = listed(exchange.request.headers, hdrs.CONTENT_TYPE).partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise GatewayError("bad_request", f"A form must be sent as {FORM}, or its fields as JSON.")
    if kind != FORM or _BEGINS_AS_JSON.match(body):
        return await json_object(exchange, body)
    if b"=" not in body:
        raise GatewayError("bad_request", "The form has no fields; they are sent as name=value.")
    try:
        fields = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise GatewayError("bad_request", "The form is not valid UTF-8; encode it as UTF-8.") from None
    except ValueError:
        raise GatewayError("bad_request", f"The form has more than {MAX_FIELDS} fields.") from None
    return dict(fields)


async def json_object(exchange: Exchange, body: Body) -> dict[str, Any]:
    """The JSON object that these bytes are, which `read_body` has read.

    Raises:
        GatewayError: `bad_request`; the message says what is wrong. `overloaded`: there is no room for its values.
    """
    if body.startswith(codecs.BOM_UTF8):
        body = body[len(codecs.BOM_UTF8) :]
    if not body or body.isspace():
        raise GatewayError("bad_request", "The body is empty; it must be a JSON object.")
    if len(body) <= LARGE:
        await reserve(exchange, await _weight(body))
        return await parsed(body)
    turns = exchange.gateway.engine.turns
    async with turns:
        size = await _weight(body)
    await reserve(exchange, size)
    async with turns:
        return await parsed(body)


async def _weight(body: Body) -> int:
    try:
        return await finished(weighing(body))
    except TooMuchError as error:
        raise GatewayError("bad_request", str(error)) from None


async def parsed(body: Body) -> dict[str, Any]:
    """The JSON object that these bytes are, which are few or were weighed.

    Raises:
        GatewayError: `bad_request`; the message says what is wrong.
    """
    try:
        # Two passes: the first makes no objects, so that a mistake behind megabytes is found cheaply.
        for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
            if len(raw) > MANY:
                await asyncio.sleep(0)
                _check_items(name, raw)
                await asyncio.sleep(0)
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError as error:
        large = "out of range" in str(error)
        wrong = "A number in the body is out of range." if large else "The body must be a JSON object."
        raise GatewayError("bad_request", wrong, detail=wrong) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if len(body) > MANY:
            await asyncio.sleep(0)
        wrong = _wrong_with(body, error) or f"The body is not valid JSON: {error}"
        raise GatewayError("bad_request", wrong, detail=wrong) from None  # it names a byte's place, and quotes nothing


def _wrong_with(body: Body, error: Exception) -> str:
    """What is wrong with the characters of a body that is not valid JSON; "" where that is not the reason."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        return "The body is UTF-16 or UTF-32; JSON must be sent as UTF-8."
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"The body is not valid UTF-8 (byte {wrong.start}); JSON must be sent as UTF-8."
    # The decoder takes a text that ends behind a first half for one that was truncated.
    if "surrogate" in str(error) or ("truncated" in str(error) and _FIRST_HALF.search(body)):
        return "The body has one half of a surrogate pair, as in \\ud83d: a character such as an emoji was cut in two."
    return ""


def _check_items(name: str, raw: msgspec.Raw) -> None:
    value = memoryview(raw)
    if value[0] != ord("["):
        return
    try:
        _items(value[:-1])  # without its end, an array that is not too long is broken off
    except msgspec.ValidationError:
        raise GatewayError("bad_request", f"{name!r:.80} has more than {MAX_ITEMS} items.") from None
    except msgspec.DecodeError:
        return


def _too_large(limit: int) -> GatewayError:
    return GatewayError("body_too_large", f"The request body is larger than {limit} bytes.")
