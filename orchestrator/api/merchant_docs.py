"""How the calls on merchants are described in the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from orchestrator.api.contract import merchants, ref
from orchestrator.api.docs import described, described_problems, json_body


def of_merchant(
    shape: type,
    about: str,
    scopes: tuple[str, ...],
    *,
    status: int = 200,
    body: type | None = None,
    required: bool = True,
) -> dict[str, Any]:
    """Return FastAPI's description of a route of a merchant, for a token of the operator; `scopes`: one of
    them is needed.
    """
    asked = None if body is None else json_body(ref(body), required=required)
    told = described(shape, about, status, asked, scopes=scopes)
    scope = " or ".join(scopes)
    told["responses"] |= described_problems(
        insufficient_scope=(HTTPStatus.FORBIDDEN, f"Not a token of the operator with the scope {scope}"),
        unknown_merchant=(HTTPStatus.NOT_FOUND, "There is no such merchant"),
        **(
            {}
            if body is None
            else {"invalid_merchant": (HTTPStatus.UNPROCESSABLE_ENTITY, "A field is wrong")}
        ),
    )
    return told


def added_merchant(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that adds a merchant."""
    told = of_merchant(merchants.Merchant, "Added", scopes, status=201, body=merchants.AddMerchant)
    del told["responses"]["404"]
    told["responses"] |= described_problems(merchant_exists=(HTTPStatus.CONFLICT, "The name is taken"))
    return told


def listed_merchants(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that lists merchants."""
    told = of_merchant(merchants.MerchantPage, "Found", scopes)
    del told["responses"]["404"]
    return told


def checked_merchant(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that checks a merchant's credentials."""
    told = of_merchant(merchants.CheckedCredentials, "What the gateway said", scopes)
    told["responses"] |= described_problems(
        credentials_elsewhere=(HTTPStatus.CONFLICT, "The API cannot make the call: `detail` says why")
    )
    return told
