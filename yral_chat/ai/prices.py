"""What the models cost, by the day. Prices are dollars a million tokens, text and pictures, paid tier.

Source: https://ai.google.dev/gemini-api/docs/pricing. Thinking is billed as output. A new price is a new row: turns of
earlier days keep theirs.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal

from yral_chat.ai import Usage


@dataclass(frozen=True, slots=True)
class Price:
    model: str  # and its dated versions: gemini-2.5-flash-001
    since: dt.date
    prompt: Decimal
    output: Decimal


def _price(model: str, since: str, prompt: str, output: str) -> Price:
    return Price(model, dt.date.fromisoformat(since), Decimal(prompt), Decimal(output))


PRICES = (
    _price("gemini-2.0-flash", "2025-02-05", "0.10", "0.40"),
    _price("gemini-2.0-flash-lite", "2025-02-25", "0.075", "0.30"),
    _price("gemini-2.5-flash", "2025-06-17", "0.30", "2.50"),
    _price("gemini-2.5-flash-lite", "2025-07-22", "0.10", "0.40"),
    _price("gemini-2.5-pro", "2025-06-17", "1.25", "10.00"),
    _price("gemini-3-pro-preview", "2025-11-18", "2.00", "12.00"),
    _price("offline", "2025-01-01", "0", "0"),
)


def cost(model: str, usage: Usage, day: dt.date) -> Decimal | None:
    """In dollars; None for a model or a day that no row knows."""
    known = [p for p in PRICES if (model == p.model or model.startswith(p.model + "-")) and p.since <= day]
    if not known:
        return None
    price = max(known, key=lambda p: (len(p.model), p.since))
    billed_output = usage.output + usage.thinking
    return (usage.prompt * price.prompt + billed_output * price.output) / 1_000_000
