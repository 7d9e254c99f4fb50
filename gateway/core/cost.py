"""What a usage comes to: tokens, and money by a table of prices. What is spent and settled is all made here.

No configuration names prices yet: the program asks for tokens, and only tests for money.

Invariants:

- The same usage and model come to the same amounts before the start, while a stream runs, and after its end.
- A model without a price has no cost. That is not the same as costing nothing, so the amounts leave `cost` out.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from gateway.core.event import Usage
from gateway.core.limits import TOKENS

COST: Final = "cost"
PER_TOKENS: Final = 1_000_000
"""Tokens that a price is for."""


class Price(NamedTuple):
    """What a million tokens of a model cost, in the currency of the plans.

    Attributes:
        input: tokens of the prompt.
        output: tokens of the answer.
        cached_input: tokens of the prompt that the provider had in its cache; None where they cost the same as others.
    """

    input: float
    output: float
    cached_input: float | None = None


Prices = Mapping[str, Price]
"""Prices by the name of the model. `*` at the end of a name matches the rest of a model's name."""

NO_PRICES: Final[Prices] = MappingProxyType({})


def price_of(model: str, prices: Prices) -> Price | None:
    """The price of the longest name that matches, the model's own name before all others; None where none matches."""
    if model in prices:
        return prices[model]
    matching = [name for name in prices if name.endswith("*") and model.startswith(name[:-1])]
    return prices[max(matching, key=len)] if matching else None


def cost(usage: Usage, model: str, prices: Prices) -> float | None:
    """What the usage costs, in the currency of the prices; None for a model without a price."""
    price = price_of(model, prices)
    if price is None:
        return None
    cached = min(usage.cached_input, usage.input)
    cached_price = price.input if price.cached_input is None else price.cached_input
    total = (usage.input - cached) * price.input + cached * cached_price + usage.output * price.output
    return total / PER_TOKENS


def amounts(usage: Usage, model: str, prices: Prices = NO_PRICES) -> dict[str, float]:
    """How much the usage takes of the limits, by their names: `tokens`, and `cost` for a model with a price."""
    found: dict[str, float] = {TOKENS: usage.input + usage.output}
    money = cost(usage, model, prices) if prices else None
    if money is not None:
        found[COST] = money
    return found
