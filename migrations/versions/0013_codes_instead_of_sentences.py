"""Attention, last errors and results of commands are codes with details.

Revision: 0013
Before: 0012

Earlier versions stored sentences that begin with a word. Each sentence that the previous version could write
becomes a code and the values that it was made of; a known word followed by other words keeps its code, with
those words as `text`; anything else becomes `other` with its whole `text`. Audit entries keep their words,
since they are never changed; their readers accept both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.domain import attention as attentions
from orchestrator.domain import command_result, last_error, sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    Details = dict[str, Any]
    Coded = tuple[str, Details]
    Payments = Mapping[str, Any]

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

COLUMNS = (
    ("checkouts", "last_error_details", JSONB()),
    ("checkouts", "attention_details", JSONB()),
    ("checkouts", "attention_since", sa.DateTime(timezone=True)),
    ("money_operations", "last_error_details", JSONB()),
    ("commands", "result_details", JSONB()),
)
AT_ONCE = 2000

ATTENTIONS = """
    SELECT id, attention, amount, currency, order_ref FROM checkouts
     WHERE attention IS NOT NULL AND id > %s ORDER BY id LIMIT %s
"""
ERRORS = """
    SELECT id, last_error, amount, currency, order_ref FROM checkouts
     WHERE last_error IS NOT NULL AND id > %s ORDER BY id LIMIT %s
"""
OPERATION_ERRORS = """
    SELECT id, last_error FROM money_operations WHERE last_error IS NOT NULL AND id > %s ORDER BY id LIMIT %s
"""
RESULTS = "SELECT id, result FROM commands WHERE result IS NOT NULL AND id > %s ORDER BY id LIMIT %s"
PAYMENTS = """
    SELECT checkout_id, transaction_id, role, meaning, currency, reserved, captured, refunded + charged_back AS back,
           flags ?| ARRAY['amount_unreadable', 'currency_unknown', 'currency_conflict', 'field_repeated', 'transaction_nested'] AS unread
      FROM payments WHERE checkout_id = ANY(%s) ORDER BY first_seen_at, transaction_id
"""
OPERATIONS = """
    SELECT checkout_id, id, kind, transaction_id, amount, currency FROM money_operations
     WHERE checkout_id = ANY(%s) AND state IN ('requested', 'submitted', 'unknown')
       AND (last_error = 'operation_unclear' OR starts_with(last_error, 'operation_unclear: ')) ORDER BY requested_at, id
"""
RAISED = """
    SELECT checkout_id, max(at) AS at FROM audit_entries WHERE checkout_id = ANY(%s) AND action = 'attention:raised' GROUP BY 1
"""


def upgrade() -> None:
    """Add the columns, and turn what is stored into codes."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, name, kind in COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))
    if context.is_offline_mode():
        return
    connection = op.get_bind()
    for rows in _pages(connection, ATTENTIONS):
        _attentions(connection, rows)
    for rows in _pages(connection, ERRORS):
        _write(
            connection, "checkouts", "last_error", [(row.id, *_error(row.last_error, row)) for row in rows]
        )
    for rows in _pages(connection, OPERATION_ERRORS):
        coded = [(row.id, *_operation_error(row.last_error)) for row in rows]
        _write(connection, "money_operations", "last_error", coded)
    for rows in _pages(connection, RESULTS):
        _write(connection, "commands", "result", [(row.id, *_result(row.result)) for row in rows])


def downgrade() -> None:
    """Write sentences again, as the version before began and read them."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    if not context.is_offline_mode():
        connection = op.get_bind()
        for query, table, column, said in (
            (ATTENTIONS, "checkouts", "attention", _attention_said),
            (ERRORS, "checkouts", "last_error", _error_said),
            (OPERATION_ERRORS, "money_operations", "last_error", _operation_error_said),
            (RESULTS, "commands", "result", _result_said),
        ):
            with_details = query.replace(f"SELECT id, {column}", f"SELECT id, {column}, {column}_details")
            for rows in _pages(connection, with_details):
                told: list[tuple[Any, str | None, Details]] = [
                    (row.id, said(row[1], row[2]), {}) for row in rows
                ]
                _write(connection, table, column, told)
    for table, name, _ in reversed(COLUMNS):
        op.drop_column(table, name)


def _pages(connection: Connection, query: str) -> Iterator[Sequence[Any]]:
    after = "00000000-0000-0000-0000-000000000000"
    while rows := connection.exec_driver_sql(query, (after, AT_ONCE)).all():
        yield rows
        after = rows[-1].id


def _write(
    connection: Connection, table: str, column: str, rows: Sequence[tuple[Any, str | None, Details]]
) -> None:
    told = [{"id": row, "code": code, "details": details or None} for row, code, details in rows]
    connection.exec_driver_sql(
        f"UPDATE {table} AS t SET {column} = r.code, {column}_details = r.details "  # noqa: S608 - our own names
        "FROM json_to_recordset(CAST(%s AS json)) AS r(id uuid, code text, details jsonb) WHERE t.id = r.id",
        (msgspec.json.encode(told).decode(),),
    )


# ── Attention ─────────────────────────────────────────────────────────────────────────────────────────────

MONEY = re.compile(r"(?P<amount>-?[0-9]+(?:\.[0-9]+)?) (?P<currency>\S+)")
MINOR = re.compile(r"(?P<amount>-?[0-9]+) minor units of (?P<currency>.+)")
BESIDE = re.compile(r"(?P<said>.*); transactions (?P<named>[^;]+) hold money for it", re.DOTALL)
LAPSES = re.compile(
    r"the reservation is sure to be worth a capture until (\S+) (\S+) UTC only; capture or release it"
)
CHARGED_BACK = re.compile(r"the shopper's bank took back (.+); answer it at the gateway")
RELEASED = re.compile(r"transaction (.+), which paid this order, was released at the gateway")
SURPLUS = re.compile(r"transactions (.+) (also hold money for this order|hold money for it)")
USED_UP = re.compile(r"([0-9]+) sessions were opened for it, and the gateway takes about ([0-9]+)")
BROKE = re.compile(r"(\S+) while (\S+); see the workers' logs")
FAILING = re.compile(r"([0-9]+) failed calls in a row, last (.+)", re.DOTALL)
UNREADABLE = re.compile(
    r"the gateway's answer to (\S+) for order (\S+) cannot be read, ([0-9]+) times in a row, last (.+)",
    re.DOTALL,
)
REJECTED = re.compile(r"the (capture|refund|release) of transaction (\S+) was not done: (.+)", re.DOTALL)
FOREIGN = re.compile(
    r"(capture|refund|release) (\S+) was not sent: (.+); compare the gateway's books and the audit trail",
    re.DOTALL,
)
MISMATCH = re.compile(r"transaction (\S+) holds (.+), the order is .+")
SURCHARGED = re.compile(r"transaction (\S+) holds (.+), which is the order of .+ and a surcharge of (.+)")
SEVERAL = re.compile(r"transactions (.+) hold .+, the order is .+")
ONE_OF_SEVERAL = re.compile(r"(\S+) \(([^)]+)\)")
HOLDS = re.compile(r"transaction (\S+) holds (.+)")
STATUS = re.compile(r"transaction (\S+) is (.+) with amounts that do not say what it means")
REPEATED = re.compile(r"transaction (\S+) names more than one checkout")
NAMELESS = re.compile(r"transaction (\S+) names no checkout, and several checkouts have order number \S+")
CHARGEBACK = re.compile(
    r"the gateway tells of a chargeback or a dispute of transaction (\S+) that cannot be counted: (.+)",
    re.DOTALL,
)
OVER_REFUND = re.compile(r"of transaction (\S+) (.+) are refunded, and (.+) were captured")
OVER_CAPTURE = re.compile(r"of transaction (\S+) (.+) are captured, and (.+) were reserved")
CREDITED = re.compile(
    r"the gateway shows a credit of (.+) to the shopper beside transaction (\S+)", re.DOTALL
)

PLAIN = {
    "late_payment": "the money came after the checkout had ended; keep the order, or return the money",
    "lookup_at_limit": "the gateway's answer has as many rows as it may have, so it proves no absence",
    "open_payment": "a payment has been open since long before the deadline; ask the gateway or the shopper",
    "payment_gone": "the gateway no longer shows the payment that completed this checkout",
    "gateway_credentials": "the gateway refuses this merchant's user name and password; correct them",
    "poisoned": "every worker that took this checkout stopped in the middle; see the workers' logs",
    "no_payment_methods": (
        "the gateway offers none for this order; check the merchant's terminals, and the order's country, currency and amount"
    ),
}
OF_ACCEPTED = ("late_payment", "unknown_order", "payment_gone", "reservation_lapses", "charged_back")
PROBLEMS = ("payment_mismatch", "unclear_payment", "unbound_payment")
IRREGULAR = ("chargeback_unclear", "over_refund", "over_capture", "credited")
CODES = (
    *PROBLEMS, *IRREGULAR, "late_payment", "surplus_payment", "unknown_order", "lookup_at_limit", "payment_released", "payment_gone",
    "open_payment", "reservation_lapses", "charged_back", "operation_unclear", "operation_rejected", "gateway_credentials",
    "gateway_failing", "step_broke", "poisoned", "order_number_used_up", "no_payment_methods",
)  # fmt: skip


def _attentions(connection: Connection, rows: Sequence[Any]) -> None:
    ids = [row.id for row in rows]
    payments: dict[Any, dict[str, Any]] = {}
    for payment in connection.exec_driver_sql(PAYMENTS, (ids,)):
        payments.setdefault(payment.checkout_id, {})[payment.transaction_id] = payment
    unclear = {
        operation.checkout_id: operation for operation in connection.exec_driver_sql(OPERATIONS, (ids,))
    }
    coded = []
    for row in rows:
        code, details = _attention(row.attention, row, payments.get(row.id, {}))
        operation = unclear.get(row.id)
        if code == "operation_unclear" and operation is not None:
            details["facts"] |= {
                "operation": str(operation.id),
                "kind": operation.kind,
                "transaction": operation.transaction_id,
            }
            details["payments"] = [_amount(operation.transaction_id, operation.amount, operation.currency)]
        coded.append((row.id, code, details))
    _write(connection, "checkouts", "attention", coded)
    raised = [{"id": row.checkout_id, "at": row.at} for row in connection.exec_driver_sql(RAISED, (ids,))]
    connection.exec_driver_sql(
        "UPDATE checkouts AS t SET attention_since = r.at FROM json_to_recordset(CAST(%s AS json)) AS r(id uuid, at timestamptz) "
        "WHERE t.id = r.id",
        (msgspec.json.encode(raised).decode(),),
    )


def _attention(text: str, checkout: Any, payments: Payments) -> Coded:
    """Return the code and the details of a stored attention."""
    code, separator, said = text.partition(": ")
    if code not in CODES or not separator:
        return "other", {"facts": {"text": text}}
    details: Details = {}
    if found := BESIDE.fullmatch(said):
        said = found["said"]
        details["beside"] = _named(found["named"], payments)
    facts, about = _told(code, said, checkout, payments)
    details["facts"] = {"text": said} if facts is None else facts
    details["payments"] = about
    return code, {name: value for name, value in details.items() if value or name == "facts"}


def _told(  # noqa: C901, PLR0911, PLR0912 - a line for each code
    code: str, said: str, checkout: Any, payments: Payments
) -> tuple[Details | None, list[Details]]:
    """Return the values that a sentence was made of, None where it is another one, and the payments that it
    is about.
    """
    about = [
        _left(payment) for payment in payments.values() if code in OF_ACCEPTED and payment.role == "accepted"
    ]
    if code == "open_payment":
        about = [_left(payment) for payment in payments.values() if payment.meaning == "open"]
    if code in PROBLEMS:
        return _problem(code, said, checkout, payments)
    if code in IRREGULAR:
        return _irregular(code, said, checkout, payments)
    if code in PLAIN:
        return ({} if said == PLAIN[code] else None), about
    order = {"orderId": checkout.order_ref}
    match code:
        case "unknown_order":
            wanted = f"a payment came for order number {checkout.order_ref}, which no shop has handed over; keep it, or return it"
            return (order if said == wanted else None), about
        case "surplus_payment" if found := SURPLUS.fullmatch(said):
            released = {"released": True} if found[2] == "hold money for it" else {}
            return released, _named(found[1], payments)
        case "payment_released" if found := RELEASED.fullmatch(said):
            return {}, _named(found[1], payments)
        case "reservation_lapses" if found := LAPSES.fullmatch(said):
            return {"until": f"{found[1]}T{found[2]}+00:00"}, about
        case "charged_back" if (found := CHARGED_BACK.fullmatch(said)) and (amounts := _minor(found[1])):
            return {"amount": amounts[0], "currency": amounts[1]}, about
        case "operation_unclear":
            return {"error": _as_fact(_operation_error(f"operation_unclear: {said}"))}, []
        case "operation_rejected" if found := REJECTED.fullmatch(said):
            facts = {"kind": found[1], "transaction": found[2], "error": _as_fact(_operation_error(found[3]))}
            return facts, _named(found[2], payments)
        case "operation_rejected" if found := FOREIGN.fullmatch(said):
            error = _as_fact(_operation_error(found[3]))
            return {"kind": found[1], "operation": found[2], "authentic": False, "error": error}, []
        case "gateway_failing" if found := FAILING.fullmatch(said):
            return {"attempts": int(found[1]), "error": _as_fact(_error(found[2], checkout))}, []
        case "gateway_failing" if found := UNREADABLE.fullmatch(said):
            facts = {"call": found[1], "orderId": found[2], "attempts": int(found[3])}
            return {**facts, "error": _as_fact(_error(found[4], checkout))}, []
        case "step_broke" if found := BROKE.fullmatch(said):
            return {"error": found[1], "state": found[2]}, []
        case "order_number_used_up" if found := USED_UP.fullmatch(said):
            return {"sessions": int(found[1]), "most": int(found[2])}, []
        case _:
            return None, about


def _problem(code: str, said: str, checkout: Any, payments: Payments) -> tuple[Details | None, list[Details]]:
    facts: Details = {
        "ordered": checkout.amount,
        "currency": checkout.currency,
        "orderId": checkout.order_ref,
    }
    if code == "payment_mismatch":
        if (found := SURCHARGED.fullmatch(said)) and (extra := _minor(found[3])):
            return {**facts, "surcharge": extra[0]}, [_mismatch(found[1], found[2])]
        if found := MISMATCH.fullmatch(said):
            return facts, [_mismatch(found[1], found[2])]
        if (found := SEVERAL.fullmatch(said)) and (named := ONE_OF_SEVERAL.findall(found[1])):
            return facts, [_mismatch(*mismatch) for mismatch in named]
    about = []
    for part in said.split("; "):
        if found := STATUS.fullmatch(part):
            status = "" if found[2] == "without a status" else found[2]
            about.append(_of_books(found[1], payments) | {"problem": "unclear_payment", "status": status})
        elif found := REPEATED.fullmatch(part):
            about.append(_of_books(found[1], payments) | {"problem": "unbound_payment", "repeated": True})
        elif found := NAMELESS.fullmatch(part):
            about.append(_of_books(found[1], payments) | {"problem": "unbound_payment"})
        elif found := HOLDS.fullmatch(part):
            about.append(_mismatch(found[1], found[2]))
    return (facts if about else None), about


def _irregular(
    code: str, said: str, checkout: Any, payments: Payments
) -> tuple[Details | None, list[Details]]:
    if code == "chargeback_unclear" and (found := CHARGEBACK.fullmatch(said)):
        payment = _of_books(found[1], payments)
        return {"events": found[2].split("; "), "currency": payment["currency"] or checkout.currency}, [
            payment
        ]
    if code == "credited" and (found := CREDITED.fullmatch(said)):
        payment = _of_books(found[2], payments)
        return {"credits": found[1].split("; "), "currency": payment["currency"] or checkout.currency}, [
            payment
        ]
    names = {"over_refund": ("refunded", "captured"), "over_capture": ("captured", "reserved")}.get(code)
    found = (OVER_REFUND if code == "over_refund" else OVER_CAPTURE).fullmatch(said)
    if names and found and (first := _minor(found[2])) and (second := _minor(found[3])):
        facts = {names[0]: first[0], names[1]: second[0], "currency": first[1]}
        return facts, [_of_books(found[1], payments)]
    return None, []


def _mismatch(transaction: str, said: str) -> Details:
    amount, currency = _minor(said) or (None, "")
    return _amount(transaction, amount, currency) | {"problem": "payment_mismatch"}


def _minor(said: str) -> tuple[int, str] | None:
    """Read an amount as it was spelled: with exactly the decimals of its currency."""
    if found := MINOR.fullmatch(said):
        currency = "" if found["currency"] == "an unknown currency" else found["currency"]
        return int(found["amount"]), currency
    found = MONEY.fullmatch(said)
    return None if found is None else (int(found["amount"].replace(".", "")), found["currency"])


def _amount(transaction: str, amount: int | None, currency: str) -> Details:
    return {"transaction_id": transaction, "amount": amount, "currency": currency}


def _left(payment: Any) -> Details:
    held = max(payment.captured - payment.back, 0) if payment.captured > 0 else payment.reserved
    amount = None if payment.unread else 0 if payment.meaning == "nothing" else held
    return _amount(payment.transaction_id, amount, payment.currency)


def _of_books(transaction: str, payments: Payments) -> Details:
    payment = payments.get(transaction)
    return _amount(transaction, None, "") if payment is None else _left(payment)


def _named(said: str, payments: Payments) -> list[Details]:
    return [_of_books(transaction, payments) for transaction in said.split(", ")]


# ── Last errors ───────────────────────────────────────────────────────────────────────────────────────────

CALLS = {
    "throttled": "throttled", "not_sent": "not_sent", "busy": "busy", "circuit_open": "circuit_open", "left_alone": "circuit_open",
    "unknown": "unknown", "unauthorized": "unauthorized", "refused": "refused", "gateway_refused": "gateway_refused",
}  # fmt: skip
"""How a failed call began, before migration 0011 too, and its code."""
TOKEN_REFUSED = "unauthorized: the gateway refuses a token that it issued a moment ago"  # noqa: S105 - a sentence
LEFT_TO_ORDER = re.compile(r"the order has checkout (\S+), which the payment is left to")


def _call_error(text: str) -> Coded | None:
    word, separator, reason = text.partition(": ")
    if text == TOKEN_REFUSED:
        return "token_refused", {}
    return (CALLS[word], {"reason": reason}) if separator and word in CALLS else None


def _error(text: str, checkout: Any) -> Coded:
    """Return the code and the facts of a checkout's stored error."""
    if call := _call_error(text):
        return call
    if text == "the deadline passed before it could be offered again":
        return "deadline_passed", {}
    if text == "unknown_order: a payment came for an order number that nobody asked for":
        return "unknown_order", {}
    if found := LEFT_TO_ORDER.fullmatch(text):
        return "left_to_order", {"checkout": found[1]}
    code, details = _attention(text, checkout, {})
    if code in {"no_payment_methods", "order_number_used_up", "step_broke"}:
        return code, details["facts"]
    if code != "other":
        return "needs_decision", {"attention": {"code": code, **details}}
    return "other", {"text": text}


TEXT_OF_OPERATION: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Coded | None]], ...] = (
    (
        re.compile(r"its row was not written by a worker of this installation, or was changed since"),
        lambda _: ("not_authentic", {}),
    ),
    (
        re.compile(r"the gateway answered (.+)", re.DOTALL),
        lambda found: ("gateway_answered", {"answer": found[1]}),
    ),
    (re.compile(r"it has been captured: refund it instead"), lambda _: ("already_captured", {})),
    (re.compile(r"its call may still be on its way"), lambda _: ("call_under_way", {})),
    (
        re.compile(r"(succeeded|rejected) by decision of a person"),
        lambda found: ("decided", {"state": found[1]}),
    ),
    (
        re.compile(r"the transaction is (.+): it holds no money"),
        lambda found: ("holds_no_money", {"status": found[1]}),
    ),
    (
        re.compile(r"only (.+) are left to (capture|refund), not (.+)"),
        lambda found: _amounts("nothing_left", {"left": found[1], "amount": found[3]}, kind=found[2]),
    ),
    (
        re.compile(r"the gateway's total is (.+) and was (.+) when this was asked for: decide again"),
        lambda found: _amounts("total_changed", {"total": found[1], "before": found[2]}),
    ),
)
TEXT_OF_UNCLEAR: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Coded | None]], ...] = (
    (
        re.compile(r"the gateway does not know transaction (\S+) of operation (\S+) any more"),
        lambda found: ("transaction_unknown", {"transaction": found[1], "operation": found[2]}),
    ),
    (
        re.compile(r"the transaction is (.+) with amounts that do not say what it means"),
        lambda found: ("status_unclear", {"status": found[1]}),
    ),
    (re.compile(r"transaction is (.+)"), lambda found: ("release_unclear", {"status": found[1]})),
    (
        re.compile(r"it was sent ([0-9]+) times, and the gateway's books never had it"),
        lambda found: ("never_in_books", {"sends": int(found[1])}),
    ),
    (
        re.compile(r"the gateway's total is (.+), and with or without this it would be (.+) or (.+)"),
        lambda found: _total_unclear(found[1], found[2], found[3]),
    ),
)


def _operation_error(text: str) -> Coded:
    """Return the code and the facts of a money operation's stored error."""
    word, _, said = text.partition(": ")
    if word == "operation_unclear":
        # What a person is to decide on stays that, whatever its words are.
        return _first(said, TEXT_OF_UNCLEAR) or ("status_unclear", {"text": said})
    return _call_error(text) or _first(text, TEXT_OF_OPERATION) or ("other", {"text": text})


def _first(
    text: str, known: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], Coded | None]]]
) -> Coded | None:
    for pattern, made in known:
        if (found := pattern.fullmatch(text)) and (coded := made(found)):
            return coded
    return None


def _amounts(code: str, said: Mapping[str, str], **facts: object) -> Coded | None:
    read = {name: _minor(text) for name, text in said.items()}
    amounts = {name: amount[0] for name, amount in read.items() if amount is not None}
    currency = next((amount[1] for amount in read.values() if amount is not None), "")
    return (code, {**facts, **amounts, "currency": currency}) if len(amounts) == len(said) else None


def _total_unclear(total: str, with_it: str, before: str) -> Coded | None:
    coded = _amounts("total_unclear", {"total": total, "before": before, "with": with_it})
    if coded is not None:
        coded[1]["amount"] = coded[1].pop("with") - coded[1]["before"]
    return coded


def _as_fact(coded: Coded) -> Details:
    code, facts = coded
    return {"code": code, **({"facts": facts} if facts else {})}


# ── Results of commands ───────────────────────────────────────────────────────────────────────────────────

SHOWN = {
    "money held for this order": "paid",
    "a payment that is still open": "open",
    "only attempts that are over without money": "declined",
    "no attempt to pay": "nothing",
    "that the payment was released": "released",
    "something that a person must look at": "unsure",
}
UUIDS = re.compile(r"[0-9a-f-]{36}(, [0-9a-f-]{36})*")
TEXT_OF_RESULT: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Coded | None]], ...] = (
    (re.compile("accepted"), lambda _: ("accepted", {})),
    (
        re.compile(rf"accepted: ({UUIDS.pattern})"),
        lambda found: ("accepted", {"operations": found[1].split(", ")}),
    ),
    (re.compile("done: it is tried again now"), lambda _: ("done_retried", {})),
    (re.compile("done: it is reopened"), lambda _: ("done_reopened", {})),
    (
        re.compile("done: the order is completed with these payments, if the gateway still holds the same"),
        lambda _: ("done_kept", {}),
    ),
    (re.compile("done: it is not asked again"), lambda _: ("done_decided", {})),
    (
        re.compile("done: it is (succeeded|rejected), as you found it"),
        lambda found: ("done_operation_decided", {"state": found[1]}),
    ),
    (
        re.compile("done: the gateway shows (.+)"),
        lambda found: ("done_looked_up", {"finding": SHOWN[found[1]]}) if found[1] in SHOWN else None,
    ),
    (
        re.compile(
            "refused: its row was not written by the API or the command line of this installation, or was changed since"
        ),
        lambda _: ("refused_not_authentic", {}),
    ),
    (
        re.compile("refused: it was taken before, and its row was changed since"),
        lambda _: ("refused_repeated", {}),
    ),
    (
        re.compile("refused: it was asked for version ([0-9]+), and the checkout is at version ([0-9]+) now"),
        lambda found: ("refused_version_changed", {"asked": int(found[1]), "version": int(found[2])}),
    ),
    (
        re.compile("refused: a checkout that is ([a-z_]+) cannot be cancelled"),
        lambda found: ("refused_not_cancellable", {"state": found[1]}),
    ),
    (re.compile("refused: it is being cancelled already"), lambda _: ("refused_cancelling", {})),
    (
        re.compile("refused: a checkout that is ([a-z_]+) cannot be reopened"),
        lambda found: ("refused_not_closed", {"state": found[1]}),
    ),
    (
        re.compile(r"refused: nobody asked for order (\S+): there is nothing to open a session with"),
        lambda found: ("refused_not_an_order", {"orderId": found[1]}),
    ),
    (
        re.compile(r"refused: order (\S+) belongs to checkout (\S+) now"),
        lambda found: ("refused_order_taken", {"orderId": found[1], "checkout": found[2]}),
    ),
    (
        re.compile(
            r"refused: order number (\S+) has been used ([0-9]+) times at the gateway, which takes about ([0-9]+)"
        ),
        lambda found: (
            "refused_order_number_used_up",
            {"orderId": found[1], "sessions": int(found[2]), "most": int(found[3])},
        ),
    ),
    (
        re.compile("refused: the gateway shows this order as ([a-z]+)"),
        lambda found: ("refused_payment_shown", {"finding": found[1]}),
    ),
    (
        re.compile("refused: a checkout that is ([a-z_]+) has no payment"),
        lambda found: ("refused_not_paid", {"state": found[1]}),
    ),
    (
        re.compile("refused: this order is paid by transactions (.+): name one of them"),
        lambda found: ("refused_several_payments", {"transactions": found[1].split(", ")}),
    ),
    (
        re.compile("refused: no lookup has seen transaction (.+) for this order"),
        lambda found: ("refused_unknown_transaction", {"transaction": found[1]}),
    ),
    (
        re.compile(
            "refused: only the payment that completed the checkout can be captured; surplus is released or refunded"
        ),
        lambda _: ("refused_not_its_payment", {}),
    ),
    (
        re.compile(
            r"refused: the gateway captures this payment by itself \(autoCapture\), and has not said that it will not"
        ),
        lambda _: ("refused_captures_itself", {}),
    ),
    (
        re.compile("refused: it has been captured: refund it instead"),
        lambda _: ("refused_already_captured", {}),
    ),
    (
        re.compile("refused: nothing is left to (capture|refund|release)"),
        lambda found: ("refused_nothing_left", {"kind": found[1]}),
    ),
    (
        re.compile("refused: only (.+) are left to (capture|refund), and (.+) were asked for"),
        lambda found: _amounts("refused_too_much", {"left": found[1], "amount": found[3]}, kind=found[2]),
    ),
    (re.compile("refused: nothing is waiting for a decision"), lambda _: ("refused_nothing_to_decide", {})),
    (
        re.compile(
            "refused: the payments that it is about have changed: read the checkout again and decide again"
        ),
        lambda _: ("refused_payments_changed", {}),
    ),
    (
        re.compile(
            r"refused: the amounts of transaction (\S+) cannot be read: look it up at the gateway, give the money back there or take "
            "another payment for the order"
        ),
        lambda found: ("refused_amount_unreadable", {"transaction": found[1]}),
    ),
    (
        re.compile(
            r"refused: transaction (\S+) is in (.+) and the order in (\S+): it cannot pay this order; return it"
        ),
        lambda found: (
            "refused_other_currency",
            {
                "transaction": found[1],
                "currency": "" if found[2] == "an unknown currency" else found[2],
                "ordered": found[3],
            },
        ),
    ),
    (
        re.compile("refused: transactions (.+) do not all hold money: say dismiss, or reconcile"),
        lambda found: ("refused_hold_no_money", {"transactions": found[1].split(", ")}),
    ),
    (
        re.compile("refused: the gateway holds money for this order under (.+): say keep or return"),
        lambda found: _money_held(found[1]),
    ),
    (
        re.compile(
            r"refused: transaction (\S+) names this order and is (.+): say keep, or give its money back in the gateway's own interface, "
            "then reconcile"
        ),
        lambda found: (
            "refused_money_possible",
            {"transaction": found[1], "status": "" if found[2] == "without a status" else found[2]},
        ),
    ),
    (
        re.compile("refused: say keep if it was done at the gateway, or dismiss if it was not"),
        lambda _: ("refused_keep_or_dismiss", {}),
    ),
    (
        re.compile("refused: ([a-z_]+) is not about money that could be returned: say keep or dismiss"),
        lambda found: ("refused_not_returnable", {"attention": found[1]}),
    ),
    (
        re.compile(
            r"refused: what transaction (\S+) holds is not clear: give its money back in the gateway's own interface, then reconcile"
        ),
        lambda found: ("refused_payment_unclear", {"transaction": found[1]}),
    ),
    (
        re.compile("refused: no transaction that this is about holds money that is surely this order's"),
        lambda _: ("refused_nothing_to_return", {}),
    ),
)


def _result(text: str) -> Coded:
    """Return the code and the facts of a command's stored result."""
    return _first(text, TEXT_OF_RESULT) or ("other", {"text": text})


def _money_held(said: str) -> Coded | None:
    payments = [
        {"transaction": transaction, "amount": read[0], "currency": read[1]}
        for transaction, spelled in ONE_OF_SEVERAL.findall(said)
        if (read := _minor(spelled))
    ]
    return ("refused_money_held", {"payments": payments}) if payments else None


# ── The way back ──────────────────────────────────────────────────────────────────────────────────────────


def _attention_said(code: str, details: Any) -> str:
    asked = attentions.stored(code, details)
    assert asked is not None  # noqa: S101 - the query leaves out what is null
    said = sentences.of(asked)
    if asked.code is attentions.AttentionCode.OTHER:
        return said
    if asked.code is attentions.AttentionCode.GATEWAY_FAILING and "error" in asked.facts:
        # It had the code of the error in it.
        error = asked.facts["error"]
        found = last_error.stored(error["code"], error.get("facts"))
        last = "" if found is None else sentences.of(found)
        said = f"{said.removesuffix(last)}{_error_said(error['code'], error.get('facts'))}"
    return f"{asked.code}: {said}"


PREFIXED = {*CALLS.values(), "no_payment_methods", "order_number_used_up", "step_broke", "unknown_order"}


def _error_said(code: str, details: Any) -> str:
    error = last_error.stored(code, details)
    assert error is not None  # noqa: S101 - the query leaves out what is null
    if error.attention is not None:
        return _attention_said(error.attention.code, error.attention.details)
    if error.code is last_error.ErrorCode.TOKEN_REFUSED:
        return TOKEN_REFUSED
    return f"{error.code}: {sentences.of(error)}" if error.code in PREFIXED else sentences.of(error)


def _operation_error_said(code: str, details: Any) -> str:
    said = _error_said(code, details)
    return f"operation_unclear: {said}" if code in last_error.UNCLEAR_OPERATION else said


def _result_said(code: str, details: Any) -> str:
    result = command_result.stored(code, details)
    assert result is not None  # noqa: S101 - the query leaves out what is null
    if result.code is command_result.ResultCode.ACCEPTED and not result.facts:
        return "accepted"
    if result.code is command_result.ResultCode.OTHER:
        return sentences.of(result)
    kind = "refused" if result.refused else "done" if result.code in command_result.DONE else "accepted"
    return f"{kind}: {sentences.of(result)}"
