"""`server.admin_auth`: whose attempts are counted, and that no way of asking gets past the count."""

import base64

import pytest

from gateway.core.credential import address_key
from gateway.core.limiter import AddressLimiter
from gateway.core.rate import Rate
from tests.admin.listening import Listening, listening
from tests.web.forwarded import ADDRESSES

SERVER = {"admin_auth": True, "trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}
AUTH = {"keys": [{"id": "ops", "key": "admin-key", "scopes": ["admin"]}]}


async def answer(listens: Listening, headers: bytes, address: str = "127.0.0.1") -> bytes:
    """What a request with these headers is answered."""
    client = listens.client(address)
    client.send(b"GET /streams HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + b"\r\n")
    return await client.rest()


async def test_attempts_are_counted_for_the_address_that_a_trusted_proxy_wrote() -> None:
    """H4: as on the main listener, so that no client chooses whom its guesses are counted for."""
    async with listening(server=SERVER, auth=AUTH) as listens:
        for headers, address in ADDRESSES:
            addresses = listens.gateway.addresses = AddressLimiter(Rate(2, 3600.0), None)
            assert addresses.request(address_key(address), listens.gateway.clock.now()) is None
            assert b" 401 " in await answer(listens, headers), headers
            assert b" 429 " in await answer(listens, headers), headers
            assert b" 401 " in await answer(listens, b"", "127.0.0.5"), headers  # nobody else's


@pytest.mark.parametrize(
    "credential",
    [
        b"Authorization: Bearer guess\r\n",
        b"Authorization: Basic " + base64.b64encode(b"x:guess") + b"\r\n",
        b"Authorization: Basic !\r\n",
        b"Cookie: gateway_token=guess\r\nSec-Fetch-Site: same-origin\r\n",
        b"",
    ],
)
async def test_every_kind_of_guess_is_counted_and_a_good_key_is_let_in(credential: bytes) -> None:
    async with listening(server=SERVER, auth=AUTH) as listens:
        listens.gateway.addresses = AddressLimiter(Rate(2, 3600.0), None)
        told = [await answer(listens, credential) for _ in range(3)]
        assert [text.split(b" ")[1] for text in told] == [b"401", b"401", b"429"]
        assert b" 200 " in await answer(listens, b"Authorization: Bearer admin-key\r\n")
