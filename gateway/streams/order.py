"""What a stream's generation was asked for, as plain values: with them another process can go on with it."""

from typing import Any

import msgspec

from gateway.core.errors import GatewayError


class NotHereError(GatewayError):
    """This process cannot go on with an order, for a reason of its own; another one may.

    Args:
        detail: the reason, for the log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("upstream_cut", detail=detail)


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
        renewed: whether `expires` is only as far as was known at the start: somebody is asked again while it runs.
        admitted: when it was admitted, in unix seconds.
        input_tokens: estimate for the prompt.
        output_tokens: of the answer, for which its limits had room when it was admitted.
    """

    route: str
    asked: dict[str, Any]
    model: str
    principal: str
    owner: str
    plan: str
    request_id: str
    expires: float | None
    renewed: bool
    admitted: float
    input_tokens: int
    output_tokens: int

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
