"""When intents are sent and what they say, decided before the first one leaves.

An open model: arrivals come on their schedule whether or not what came before is done, and latency counts from the scheduled
moment. So a product that falls behind is seen to fall behind.
"""

from __future__ import annotations

from random import Random
from typing import Final

LEAST: Final = 10_000
"""Minor units of the smallest order; amounts differ so that money given to the wrong order shows."""
_SPREAD: Final = 90_000
_STEP: Final = 37


def moments(rate: float, seconds: float, *, evenly: bool, seed: int) -> list[float]:
    """Return the moments of all arrivals, seconds from the beginning: Poisson, as independent shoppers are, or evenly spaced."""
    if evenly:
        return [number / rate for number in range(int(rate * seconds))]
    random = Random(seed)  # noqa: S311 - a run is to be repeatable
    found: list[float] = []
    moment = random.expovariate(rate)
    while moment < seconds:
        found.append(moment)
        moment += random.expovariate(rate)
    return found


def amount(number: int) -> int:
    """Return the amount of an order, in minor units."""
    return LEAST + number * _STEP % _SPREAD


def order_ref(prefix: str, number: int) -> str:
    return f"{prefix}-{number}"


def intent(prefix: str, number: int) -> bytes:
    """Return the JSON of one intent: an order of one line, with everything that a shop sends."""
    whole = amount(number)
    tax = whole // 5
    return (
        b'{"order":{"orderId":"%b","amount":{"value":%b,"currency":"DKK"},"orderLines":[{"itemId":"lamp","description":"Desk lamp",'
        b'"quantity":1,"unitPrice":%b,"taxAmount":%b,"goodsType":"item"}],"customer":{"firstName":"Test","lastName":"Shopper",'
        b'"email":"shopper@shop.example","billingAddress":{"street":"Example Road 1","city":"Exampletown","country":"DK",'
        b'"zipCode":"1000"}}},"callbacks":{"success":{"type":"URL","value":"https://shop.example/thanks"},'
        b'"failure":{"type":"URL","value":"https://shop.example/sorry"},"redirect":"https://shop.example/one-moment"},'
        b'"configuration":{"paymentType":"PAYMENT","autoCapture":false,"country":"DK","language":"en"}}'
    ) % (order_ref(prefix, number).encode(), _decimal(whole), _decimal(whole - tax), _decimal(tax))


def _decimal(minor: int) -> bytes:
    return b"%d.%02d" % divmod(minor, 100)
