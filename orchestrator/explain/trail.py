"""The evidence in sentences: what the trail says of how a checkout got where it is, and what has happened to
it since.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from orchestrator import audit
from orchestrator.audit import Action
from orchestrator.domain import money, sentences
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.domain.states import Trigger
from orchestrator.explain.record import Entry, Record, moment

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_OF_A_REASON: Final = 300
"""Characters of a reason that are shown."""
MOST_SINCE: Final = 5
"""Entries after the last move that are shown: the last so many."""

GRADES: Final = {
    "signed": "with a valid signature",
    "checksum": "with a valid checksum, which proves order and amount but not the status",
    "missing": "without the proof that the merchant's secret demands, so it was not believed",
    "wrong": "with a proof that does not match, so it was not believed",
    "stale": "with a signature that is too old, so it was taken for a replay and not believed",
    "unchecked": "whose sender could not be checked, because the merchant has no secret",
}
CALLS: Final = {
    "authenticate": "the login at the gateway",
    "token": "the renewal of the session's token",
    "session": "the opening of the payment session",
    "payment-methods": "the listing of the payment methods",
    "payments": "the lookup of the payments",
    "capture": "the capture",
    "refund": "the refund",
    "release": "the release",
}
_ARTICLES: Final = {
    "notification": "a notification",
    "success": "a success callback",
    "failure": "a failure callback",
    "redirect": "the shopper's return",
}
_WORD: Final = re.compile(r"^[a-z_]+: ")
_READABLE: Final = re.compile(r"[\w .,:/()-]{1,60}")


def plain(reason: object) -> str:
    """Return the text of a reason; for an entry before migration 0013 without its first word, which is a
    code.
    """
    said = _WORD.sub("", str(reason or "")).strip().rstrip(".")
    # A reason of one word is a code for programs.
    return (said if " " in said else said.replace("_", " ")) or "no reason was noted"


def who(actor: str) -> str:
    kind, _, name = actor.partition(":")
    match kind:
        case "client":
            return f"the shop's client {name.partition('/')[2] or name}"
        case "operator":
            return f"an operator ({name.replace('-', ' ')})"
        case "system":
            return "the orchestrator itself"
        case _:
            return actor


def told(record: Record) -> list[str]:
    """Say what moved the checkout where it is, on which evidence, and what has happened since; the oldest
    first.
    """
    entries = record.entries
    last = max((number for number, entry in enumerate(entries) if entry.moved), default=-1)
    if last < 0:
        since = [said for entry in entries if (said := _since(record, entry))]
        return [*_archived(record), *since[-MOST_SINCE:]] or [
            "The trail of this checkout holds no entry that moved it."
        ]
    sentences = _archived(record)
    moved = entries[last]
    before = next((entry for entry in reversed(entries[:last]) if entry.moved), None)
    if before is not None and before.trigger == Trigger.CALLBACK_ARRIVED:
        sentences += _callbacks(before)
    sentences += [*_callbacks(moved), _moved(record, moved)]
    since = [said for entry in entries[last + 1 :] if (said := _since(record, entry))]
    # A callback that came while the gateway was asked stands in both entries.
    return list(dict.fromkeys([*sentences, *since[-MOST_SINCE:]]))


def _archived(record: Record) -> list[str]:
    return [
        f"Its trail up to entry {archive.until} was archived at {moment(archive.at)}, in the file “{archive.file}”."
        for archive in record.archived[-1:]
    ]


def _moved(record: Record, entry: Entry) -> str:  # noqa: C901, PLR0911, PLR0912 - one line for each fact
    """Return the evidence of one move as a sentence."""
    evidence, at = entry.evidence, moment(entry.at)
    if entry.before is None:
        if audit.from_unmatched_payment(evidence):
            return f"At {at} a callback reported a payment for an order number without an intent."
        return f"At {at} {who(entry.actor)} created it."
    showed = transactions(record, evidence)
    asked = f"At {at} a worker looked it up at the gateway"
    match entry.trigger:
        case Trigger.AUTHENTICATED:
            return f"At {at} the gateway accepted our login and issued a token for it."
        case Trigger.SESSION_OPENED:
            return f"At {at} the gateway opened a payment session{_named(evidence.get('session'))}."
        case Trigger.METHODS_LISTED:
            return f"At {at} the gateway listed {_count(evidence.get('methods'), 'payment method')}."
        case Trigger.OFFERED:
            return f"At {at} the session was handed to the shop; from then on the shopper could pay."
        case Trigger.CALLBACK_ARRIVED:
            return "A callback proves no payment: the gateway's own books decide."
        case Trigger.PAYMENT_FOUND:
            return f"{asked}, and its own answer showed {showed or 'money held for this order'}."
        case Trigger.PAYMENT_DECLINED:
            return (
                f"{asked}, and its own answer showed only attempts that ended without money{_listed(showed)}."
            )
        case Trigger.PAYMENT_OPEN:
            return f"{asked}, and its own answer showed a payment that is not decided yet{_listed(showed)}."
        case Trigger.NOTHING_FOUND:
            return f"{asked}, and its own answer showed no attempt to pay this order."
        case Trigger.ORDER_CHANGED:
            return _ordered(record, entry)
        case Trigger.SESSION_LOST if evidence.get("reason"):
            return (
                f"At {at} the gateway did not change the session to the changed order{_why(evidence)}; another session is opened "
                "for it."
            )
        case Trigger.SESSION_LOST:
            return f"At {at} the gateway no longer knew the session{_named(evidence.get('session'))}, under a fresh token."
        case Trigger.DEADLINE_PASSED:
            return f"The deadline had passed; at {at} a last lookup showed nothing paid, pending or open{_listed(showed)}."
        case Trigger.CANCELLED if evidence.get("by") == "command":
            return f"At {at} it was cancelled at once, because it had never been offered to a shopper{_by(record)}."
        case Trigger.CANCELLED:
            return f"After the cancel's grace, at {at}, a lookup showed nothing paid, pending or open{_listed(showed)}{_by(record)}."
        case Trigger.REFUSED if evidence.get("methods") == 0:
            return f"At {at} the gateway offered no payment method for this order."
        case Trigger.REFUSED:
            return f"At {at} the gateway refused {_call(evidence)} for good{_why(evidence)}."
        case Trigger.ATTEMPTS_EXHAUSTED if (
            sessions := evidence.get("sessionCount", evidence.get("openings"))
        ) is not None:
            # `openings`: entries of versions before migration 0011.
            return f"At {at} {_count(sessions, 'session')} had been opened for this order number, the most that the gateway takes."
        case Trigger.ATTEMPTS_EXHAUSTED:
            return (
                f"Until the deadline {_call(evidence)} kept failing, the last time at {at}{_why(evidence)}."
            )
        case Trigger.REOPENED:
            return f"At {at} {who(entry.actor)} had it reopened for another try{_listed(showed)}."
        case _:
            return f"At {at} a fact moved it that this explanation has no words for: see the audit trail."


_AMOUNTS: Final = (
    ("reserved", "reserved"),
    ("captured", "captured"),
    ("refunded", "refunded"),
    ("chargedBack", "charged_back"),
)
"""The amounts of a transaction: as evidence names them, and as columns do, which also name unread ones."""


def transactions(record: Record, evidence: dict[str, Any]) -> str:
    """Return what a lookup showed of each transaction: its status at the gateway, its money, and how it was
    matched.
    """
    currencies = {payment.transaction_id: payment.currency for payment in record.payments}
    said = []
    for transaction in evidence.get("transactions") or ():
        number = str(transaction.get("id") or "without a number")
        currency = currencies.get(number, record.currency)
        raw = transaction.get("raw")
        amounts = [
            f"{money.as_stored(int(transaction.get(key) or 0), currency, name, raw, grouped=True)} {name.replace('_', ' ')}"
            for key, name in _AMOUNTS
            if transaction.get(key) or (raw and name in raw)
        ]
        held = " and ".join(amounts) or "no money"
        bound = (
            "matched by checkout id"
            if transaction.get("binding") == "bound"
            else "matched by order number only"
        )
        said.append(f"transaction {number} as {_status(transaction.get('status'))} with {held}, {bound}")
    return "; ".join(said)


def _callbacks(entry: Entry) -> list[str]:
    said = []
    for callback in entry.evidence.get("callbacks") or ():
        what = _ARTICLES.get(str(callback.get("kind")), "a callback")
        proof = GRADES.get(str(callback.get("grade")), "of unknown proof")
        status = f"; it said {_quoted(callback['status'])}" if callback.get("status") else ""
        about = f" about transaction {callback['transaction']}" if callback.get("transaction") else ""
        said.append(f"By {moment(entry.at)} {what}{about} had arrived {proof}{status}.")
    return said


def _since(record: Record, entry: Entry) -> str:
    """Return a sentence about an entry that moved nothing; nothing where it adds nothing for a person."""
    said = _SINCE.get(entry.action, "")
    return (
        said.format(at=moment(entry.at), who=who(entry.actor))
        if isinstance(said, str)
        else said(record, entry)
    )


def _ordered(record: Record, entry: Entry) -> str:
    about = entry.evidence
    prices = [record.price(int(about.get(name) or 0), record.currency) for name in ("amountBefore", "amount")]
    return f"At {moment(entry.at)} {who(entry.actor)} changed the order, from {prices[0]} to {prices[1]}."


def cancelled_by(record: Record) -> str:
    """Return who requested the last cancel and why, as the end of a sentence; empty where no command did."""
    asked = [command for command in record.commands if command.kind is CommandKind.CANCEL]
    if not asked:
        return ""
    reason = " ".join((asked[-1].reason or "").split())
    return f" by {who(asked[-1].actor)}{f', because of this: “{reason[:MOST_OF_A_REASON]}”' if reason else ', without a reason'}"


def _by(record: Record) -> str:
    said = cancelled_by(record)
    return f"; it was requested{said}" if said else ""


def last_failure(record: Record) -> str:
    """Return the last failed call that the trail has, as a sentence; empty where it has none."""
    failed = [entry for entry in record.entries if entry.action == Action.GATEWAY_FAILED]
    return _failed(record, failed[-1]) if failed else ""


def _failed(_: Record, entry: Entry) -> str:
    return f"At {moment(entry.at)} {_call(entry.evidence)} failed{_why(entry.evidence)}."


def _kind(entry: Entry) -> str:
    return str(entry.evidence.get("kind") or "command").replace("_", " ")


def _refused(_: Record, entry: Entry) -> str:
    return f"At {moment(entry.at)} a {_kind(entry)} by {who(entry.actor)} was refused: {plain(entry.evidence.get('refusal'))}."


def _seen(record: Record, entry: Entry) -> str:
    showed = transactions(record, entry.evidence) or "other amounts than before"
    return f"At {moment(entry.at)} a lookup at the gateway showed {showed}."


def _read(_: Record, entry: Entry) -> str:
    return " ".join(_callbacks(entry))


def _taken(_: Record, entry: Entry) -> str:
    return f"At {moment(entry.at)} a worker executed a {_kind(entry)} that {who(entry.actor)} had requested."


def _cleared(_: Record, entry: Entry) -> str:
    decision = str(entry.evidence.get("decision") or "")
    if decision in set(Decision):
        return f"At {moment(entry.at)} {who(entry.actor)} decided: {decision}."
    return f"At {moment(entry.at)} {who(entry.actor)} cleared the attention."


def _asked(_: Record, entry: Entry) -> str:
    finding = sentences.SHOWS.get(str(entry.evidence.get("finding")))
    # `shown` is the sentence itself, in entries of versions before migration 0013.
    said = f"the gateway shows {finding}" if finding else entry.evidence.get("shown")
    shown = f": {plain(said)}" if said else ""
    return f"At {moment(entry.at)} {who(entry.actor)} requested a lookup{shown}."


def _operation(said: str, *, why: bool = False) -> Callable[[Record, Entry], str]:
    def tell(record: Record, entry: Entry) -> str:
        about = entry.evidence
        amount = f" of {record.price(about['amount'], about.get('currency'))}" if about.get("amount") else ""
        because = f": {plain(about['why'])}" if why and about.get("why") else ""
        return f"At {moment(entry.at)} a {about.get('kind') or 'money operation'}{amount} {said}{because}."

    return tell


# Cancelled or submitted operations are described by the operation itself, for as long as they are so.
_SINCE: Final[dict[str, str | Callable[[Record, Entry], str]]] = {
    "intent:matched": "At {at} {who} handed the order over, after its payment: the payment is the order's.",
    "order:changed": _ordered,
    "session:changed": "At {at} the session at the gateway was changed to the order as it is.",
    "gateway:failed": _failed,
    "gateway:asked": _asked,
    "cancel:requested": "At {at} {who} requested its cancellation.",
    "command:refused": _refused,
    "command:taken": _taken,
    "callback:read": _read,
    "payment:seen": _seen,
    "attention:raised": "At {at} it was noted that a decision is needed.",
    "attention:cleared": _cleared,
    "watch:ended": "At {at} the watch ended, with nothing left that could change by itself.",
    "checkout:erased": "At {at} {who} erased the personal data.",
    "money:succeeded": _operation("was done at the gateway"),
    "money:rejected": _operation("was refused by the gateway", why=True),
    "money:unknown": _operation("may have left for the gateway, and what came of it was not known", why=True),
    "money:withdrawn": _operation("had not reached the gateway, and was put down again"),
}


def _call(evidence: dict[str, Any]) -> str:
    return CALLS.get(str(evidence.get("call")), "a call to the gateway")


def _why(evidence: dict[str, Any]) -> str:
    return f": {plain(evidence['reason'])}" if evidence.get("reason") else ""


def _named(value: object) -> str:
    return f" {value}" if value else ""


def _listed(showed: str) -> str:
    return f": {showed}" if showed else ""


def _count(number: object, what: str) -> str:
    if not isinstance(number, int):
        return f"its {what}s"
    return f"{number} {what}{'' if number == 1 else 's'}"


def _status(word: object) -> str:
    """Quote the gateway's status of a transaction, with the usual name of its short one for a reservation."""
    return _quoted(word) + (" (pre-authorization)" if word == "preauth" else "")


def _quoted(word: object) -> str:
    """Quote the gateway's own word."""
    said = str(word or "")
    return f"“{said}”" if _READABLE.fullmatch(said) else "something unreadable"
