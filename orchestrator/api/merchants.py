"""Merchants, for the operator: added, changed, disabled, their callback secrets rotated, their credentials
checked.

Only a token of the operator gets past the first line of each call. A secret comes in and is shown in no
answer, but for a callback secret that was made here, in the answer to the call that made it. Every change is
recorded with its actor (`audit.merchant_changes`) and known to every process within ten seconds.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Query, Request
from msgspec import UNSET
from starlette.responses import Response  # noqa: TC002 - FastAPI reads annotations at run time

from orchestrator import log
from orchestrator.api.contract import merchants as shapes
from orchestrator.api.contract.values import like
from orchestrator.api.dependencies import DATABASE_TIMEOUT, admit_operator, in_time
from orchestrator.api.problems import Refusal, answer, wrong
from orchestrator.api.request_body import BodyFields
from orchestrator.audit import merchant_changes
from orchestrator.gateway import credentials
from orchestrator.intents.fields import kind_of, shown
from orchestrator.processing import lookup_budget
from orchestrator.store import merchant_records
from orchestrator.store.database import is_away
from orchestrator.store.merchant_fields import NAME, GatewayNotAllowed, MerchantRejected, PolicyRejected
from orchestrator.store.merchant_writes import LONGEST_OVERLAP, OVERLAP, MerchantUpdate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.api.dependencies import Services
    from orchestrator.store.merchant_records import MerchantRecord

_log = log.get(__name__)

PATH: Final = "/v1/merchants"
WRITE: Final = "merchants:write"
READ: Final = ("merchants:read", WRITE)
"""One of them is enough."""
_WRONG: Final = "invalid-merchant"
_LAST: Final = 2**31 - 1
_FIELDS: Final = {
    "gateway URL": "gatewayUrl",
    "Merchant API URL": "merchantApiUrl",
    "callback secrets": "callbackSecrets",
    "callback secret": "secret",
}
"""The fields of the contract, by the words of the sentences."""


async def add(request: Request) -> Response:
    """Add a merchant with a gateway account of its own. Its secrets are stored encrypted and never shown."""
    services, caller = await admit_operator(request, WRITE)
    body = await _Body.of(request, shapes.AddMerchant)
    name, username, password = body.required("name"), body.required("username"), body.required("password")
    url, secrets, policies = body.required("gatewayUrl"), body.secrets(), body.policies()
    merchant_api = body.optional("merchantApiUrl")
    body.judge()
    adding = services.merchants.add(
        name,
        gateway_url=url,
        merchant_api_url=merchant_api or None,
        username=username,
        password=password,
        callback_secrets=secrets,
        policies=policies,
        actor=caller.actor,
    )
    with _refusing():
        added = await in_time(adding)
    if not added:
        raise Refusal(
            409, f"there is a merchant {name!r} already: choose another name", kind="merchant-exists"
        )
    _log.info("merchant_added", merchant=name, actor=caller.actor)
    return answer(_told(await _find(services, name)), 201, {"Location": f"{PATH}/{name}"})


async def show_all(
    request: Request,
    cursor: Annotated[str | None, Query(max_length=63, description="`nextCursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=shapes.MERCHANT_PAGE)] = 50,
) -> Response:
    """All merchants by name, page by page."""
    services, _ = await admit_operator(request, *READ)
    after = None if cursor is None else cursor.replace("\0", "")
    found = await in_time(
        merchant_records.page(
            services.db, services.encryptor, services.settings, after=after, limit=limit + 1
        )
    )
    more = found[limit - 1].name if len(found) > limit else None
    told = [_told(record) for record in found[:limit]]
    return answer(shapes.MerchantPage(merchants=told, next_cursor=more))


async def show(request: Request, merchant: str) -> Response:
    """One merchant, without its secrets."""
    services, _ = await admit_operator(request, *READ)
    return answer(_told(await _find(services, merchant)))


async def change(request: Request, merchant: str) -> Response:
    """Change gateway, user name, password or policies; workers use what is new within ten seconds.

    A stored password is for the URL and the user name that it was given with: another one of these needs the
    password again.
    """
    services, caller = await admit_operator(request, WRITE)
    body = await _Body.of(request, shapes.ChangeMerchant)
    given = body.given
    policies = body.policies()
    update = MerchantUpdate(
        gateway_url=body.required("gatewayUrl") if "gatewayUrl" in given else UNSET,
        merchant_api_url=body.optional("merchantApiUrl") if "merchantApiUrl" in given else UNSET,
        username=body.required("username") if "username" in given else UNSET,
        password=body.required("password") if "password" in given else UNSET,
        policies=policies or UNSET,
    )
    body.judge()
    with _refusing():
        async with asyncio.timeout(DATABASE_TIMEOUT):
            if not await services.merchants.change(merchant, update, actor=caller.actor):
                raise _unknown(merchant)
            if (lookups := policies.get("lookups_per_minute")) is not None:
                await lookup_budget.respace(services.db, merchant, lookups_per_minute=int(lookups))
    _log.info("merchant_changed", merchant=merchant, actor=caller.actor, fields=sorted(given))
    return answer(_told(await _find(services, merchant)))


async def rotate_secret(request: Request, merchant: str) -> Response:
    """Give a merchant a new callback secret: the gateway's, or one that is made here and shown in this answer
    alone.

    Those before it are valid for a day more, or for as long as `overlap` says.
    """
    services, caller = await admit_operator(request, WRITE)
    body = await _Body.of(request, shapes.RotateCallbackSecret, optional=True)
    secret, overlap = (
        body.required("secret") if "secret" in body.given else None,
        body.overlap(OVERLAP, most=LONGEST_OVERLAP),
    )
    body.judge()
    with _refusing():
        rotated = await in_time(
            services.merchants.rotate_secret(merchant, secret, overlap=overlap, actor=caller.actor)
        )
    if rotated is None:
        raise _unknown(merchant)
    # This process accepts it from this answer on; the others read it within seconds.
    await _read_again(services)
    _log.info("callback_secret_rotated", merchant=merchant, actor=caller.actor)
    told = shapes.CallbackSecret(secret=rotated.made, retired_until=rotated.retired_until)
    return answer(told, headers={"Cache-Control": "no-store"})


async def disable_merchant(request: Request, merchant: str) -> Response:
    """Disable a merchant."""
    return await _switched(request, merchant, disabled=True)


async def enable_merchant(request: Request, merchant: str) -> Response:
    """Enable a merchant that was disabled."""
    return await _switched(request, merchant, disabled=False)


async def _switched(request: Request, merchant: str, *, disabled: bool) -> Response:
    services, caller = await admit_operator(request, WRITE)
    if not await in_time(services.merchants.disable(merchant, disabled=disabled, actor=caller.actor)):
        raise _unknown(merchant)
    _log.info("merchant_switched", merchant=merchant, actor=caller.actor, disabled=disabled)
    return answer(_told(await _find(services, merchant)))


async def check(request: Request, merchant: str) -> Response:
    """Ask the gateway whether it accepts the merchant's credentials, by its call for a token; it begins no
    payment.
    """
    services, _ = await admit_operator(request, *READ)
    record = await _find(services, merchant)
    if record.account is None:
        raise Refusal(
            409, f"merchant {record.name!r} is unusable: {record.problem}", kind="merchant-unusable"
        )
    if not record.account.password:
        raise Refusal(
            409,
            f"the credentials of merchant {record.name!r} are in the settings of the workers, and the API has none of them: "
            f"run `orchestrator merchants check {record.name}` with those settings",
            kind="credentials-elsewhere",
        )
    found = await credentials.check(services.settings, record.account)
    return answer(like(shapes.CheckedCredentials, found))


async def show_changes(
    request: Request,
    merchant: str,
    before: Annotated[int, Query(ge=1, le=_LAST, description="`nextBefore` of the page before")] = _LAST,
    limit: Annotated[int, Query(ge=1, le=shapes.CHANGE_PAGE)] = 50,
) -> Response:
    """What was changed of a merchant, by whom, the youngest first."""
    services, _ = await admit_operator(request, *READ)
    record = await _find(services, merchant)
    found = await in_time(merchant_changes.changes(services.db, record.id, before=before, limit=limit + 1))
    more = found[limit - 1].sequence if len(found) > limit else None
    told = [
        like(shapes.ChangeOfMerchant, entry, at=merchant_changes.time_of(entry)) for entry in found[:limit]
    ]
    return answer(shapes.MerchantChangePage(changes=told, next_before=more))


async def _find(services: Services, name: str) -> MerchantRecord:
    found = None
    if NAME.fullmatch(name):
        found = await in_time(
            merchant_records.by_name(services.db, services.encryptor, services.settings, name)
        )
    if found is None:
        raise _unknown(name)
    return found


async def _read_again(services: Services) -> None:
    """Read the merchants again, if Postgres answers: a secret that was made must reach its caller."""
    try:
        await in_time(services.merchants.everyone())
    except Exception as error:
        # The secret is stored: where Postgres went away since, this process reads it with the next refresh.
        if not is_away(error):
            raise


def _unknown(name: str) -> Refusal:
    return Refusal(404, f"there is no merchant {shown(name)!r}", kind="unknown-merchant")


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what is wrong with a merchant's fields into a problem that names the field."""
    try:
        yield
    except MerchantRejected as error:
        message = str(error).removeprefix(error.field).strip()
        raise wrong(_field(error.field), message, kind=_WRONG) from None
    except GatewayNotAllowed as error:
        raise wrong("gatewayUrl", str(error), kind=_WRONG) from None
    except PolicyRejected as error:
        raise wrong("policies", str(error), kind=_WRONG) from None


def _field(named: str) -> str:
    word, _, number = named.rpartition(" ")
    if number.isdecimal():
        return f"callbackSecrets[{int(number) - 1}]" if word == "callback secret" else word
    return _FIELDS.get(named, named)


def _told(record: MerchantRecord) -> shapes.Merchant:
    policies = shapes.Policies(**record.policies) if record.policies else None
    return like(shapes.Merchant, record, retired_until=list(record.retired_until), policies=policies)


class _Body(BodyFields):
    """The body of a request; none of its problems repeats a value."""

    __slots__ = ()
    limit = 32 * 1024
    kind = _WRONG

    def required(self, name: str) -> str:
        """Read a text as it is; what it may hold is judged with the merchant."""
        value = self.given.get(name)
        if isinstance(value, str):
            return value
        if value is None:
            self.missing(self.given, "", name, "a text")
        else:
            self.wrong(name, f"must be a text, not {kind_of(value)}")
        return ""

    def optional(self, name: str) -> str | None:
        """Read a text that may be null or absent."""
        return None if self.given.get(name) is None else self.required(name)

    def secrets(self) -> tuple[str, ...]:
        """Read the callback secrets."""
        given = self.given.get("callbackSecrets", [])
        if isinstance(given, list) and all(isinstance(secret, str) for secret in given):
            return tuple(given)
        self.wrong("callbackSecrets", "must be a list of texts, newest first")
        return ()

    def policies(self) -> dict[str, Any]:
        """Read policies; their names and values are judged with the merchant."""
        given = self.given.get("policies", {})
        if isinstance(given, dict):
            return given
        self.wrong("policies", f"must be an object, not {kind_of(given)}")
        return {}
