"""What a stream's generation was asked for, as plain values: with them another process can go on with it."""

from typing import Any

import msgspec


class Order(msgspec.Struct, frozen=True):
    """One order.

    Attributes:
        route: the path of its route.
        asked: what the kind of the route needs in order to ask the same again; it holds the prompt.
        model: the model asked for, "" where none was named.
        principal: the principal that pays, as `str()` gives it.
        owner: the same as the owner of the stream.
        plan: the plan of the principal.
        request_id: the request that started it.
        expires: when the credential expires, in unix seconds; None for never.
        input_tokens: estimate for the prompt.
    """

    route: str
    asked: dict[str, Any]
    model: str
    principal: str
    owner: str
    plan: str
    request_id: str
    expires: float | None
    input_tokens: int

    def to_bytes(self) -> bytes:
        """This order as MessagePack."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Order":
        """The order that `to_bytes` wrote.

        Raises:
            ValueError: it is none.
        """
        return msgspec.msgpack.decode(data, type=cls)
