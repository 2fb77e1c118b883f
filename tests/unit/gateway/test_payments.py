"""Reading payments: every status has a row, every amount is exact or flagged, and no document raises."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.payment_meaning import TABLE, PaymentMeaning, Shape, held, read, shape
from orchestrator.domain.transaction import ChargebackEvent, Found, Transaction
from orchestrator.gateway import payments
from orchestrator.gateway.payments import DEFAULT_ROWS, Movement, RequestError
from orchestrator.gateway.xml import LARGEST, Malformed


def tried(read, *arguments, **options):
    """Return what a reader returns, or the one of its two errors that it raises: any other fails the test."""
    try:
        return read(*arguments, **options)
    except (Malformed, RequestError) as error:
        return error


parse, parse_movement = partial(tried, payments.parse), partial(tried, payments.parse_movement)

# The statuses of the facts, part 3, written out a second time on purpose.
SEEN = (
    "created pending preauth preauth_failed preauth_error 3dsecure_failed captured captured_failed released refunded "
    "invoice_initialized recurring_confirmed recurring_failed epayment_cancelled epayment_declined "
    "bank_payment_finalized bank_payment_refunded reauth_failed"
).split()

AMOUNTS = {
    Shape.EMPTY: (0, 0, 0),
    Shape.HELD: (100, 0, 0),
    Shape.TAKEN: (100, 100, 0),
    Shape.RETURNED: (100, 100, 12),
    Shape.ODD: (100, 0, 12),
}


def transaction(
    status: str = "preauth", amounts: tuple[int, int, int] = (100, 0, 0), flags: tuple[str, ...] = ()
):
    reserved, captured, refunded = amounts
    return Transaction(
        transaction_id="1",
        payment_id="p",
        order_ref="o",
        status=status,
        currency="DKK",
        reserved=reserved,
        captured=captured,
        refunded=refunded,
        credited=0,
        created_at="2026-01-02 03:04:05",
        raw_flags=flags,
    )


def xml(rows: str = "", *, code: str = "0", result: str = "Success") -> bytes:
    inner = f"<Transactions>{rows}</Transactions>" if rows else ""
    return (
        '<?xml version="1.0"?><APIResponse version="20170228"><Header><Date>2026-01-02T03:04:05+02:00</Date>'
        f"<Path>API/payments</Path><ErrorCode>{code}</ErrorCode><ErrorMessage>Anna at shop.example</ErrorMessage></Header>"
        f"<Body><Result>{result}</Result>{inner}</Body></APIResponse>"
    ).encode()


FIELDS = {
    "TransactionId": "539101",
    "PaymentId": "55aaaf42-1d1d-4b9d-9a68-2c677e2e454f",
    "AuthType": "payment",
    "ShopOrderId": "ORD-1",
    "Shop": "Example Shop",
    "Terminal": "Example Terminal",
    "TransactionStatus": "preauth",
    "ReasonCode": "NONE",
    "MerchantCurrency": "208",
    "MerchantCurrencyAlpha": "DKK",
    "ReservedAmount": "139.00",
    "CapturedAmount": "0.00",
    "RefundedAmount": "0.00",
    "CreditedAmount": "0.00",
    "CreatedDate": "2026-01-02 03:04:05",
    "PaymentNature": "CreditCard",
    "AuthorisationExpiryDate": "2026-01-09 03:04:05",
}


def row(extra: str = "", **changed: str | None) -> str:
    fields = {**FIELDS, **changed}
    return f"<Transaction>{''.join(f'<{k}>{v}</{k}>' for k, v in fields.items() if v is not None)}{extra}</Transaction>"


def only(rows: str) -> Transaction:
    found = parse(xml(rows))
    assert isinstance(found, Found)
    (payment,) = found.transactions
    return payment


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_status_that_was_seen_has_a_row_and_no_other():
    assert set(TABLE) == set(SEEN)
    assert all(set(cells) == set(Shape) for cells in TABLE.values())


EXPECTED = {
    ("created", "empty"): "open", ("pending", "empty"): "open", ("pending", "held"): "open",
    **{(s, "held"): "reserved" for s in ("preauth", "invoice_initialized", "bank_payment_finalized")},
    **{(s, "taken"): "captured" for s in (
        "preauth", "invoice_initialized", "captured", "bank_payment_finalized", "captured_failed", "reauth_failed")},
    **{(s, "returned"): "refunded" for s in (
        "preauth", "invoice_initialized", "captured", "bank_payment_finalized", "released", "refunded",
        "bank_payment_refunded", "captured_failed", "reauth_failed")},
    **{(s, "empty"): "nothing" for s in (
        "released", "preauth_failed", "preauth_error", "3dsecure_failed", "recurring_failed", "epayment_cancelled",
        "epayment_declined", "captured_failed", "reauth_failed")},
    ("released", "held"): "nothing",
    **{("recurring_confirmed", s): "agreement" for s in ("empty", "held", "taken", "returned")},
}  # fmt: skip


@pytest.mark.parametrize(("status", "shaped"), list(itertools.product(SEEN, Shape)))
def test_a_reading_follows_from_status_and_amounts_together(status, shaped):
    payment = transaction(status, AMOUNTS[shaped])
    assert shape(payment) is shaped
    assert read(payment) is PaymentMeaning(EXPECTED.get((status, shaped.value), "unknown"))


@pytest.mark.parametrize("shaped", Shape)
@pytest.mark.parametrize("status", ["", "settled", "preauth ", "chargeback"])
def test_an_unknown_status_needs_a_decision_whatever_the_amounts(status, shaped):
    assert read(transaction(status, AMOUNTS[shaped])) is PaymentMeaning.UNKNOWN


@pytest.mark.parametrize("flag", ["amount_unreadable", "currency_unknown", "currency_conflict"])
@pytest.mark.parametrize("status", SEEN)
def test_amounts_that_could_not_be_read_prove_nothing(status, flag):
    assert read(transaction(status, (0, 0, 0), (flag,))) is PaymentMeaning.UNKNOWN


@pytest.mark.parametrize(
    ("status", "amounts", "meaning", "counted"),
    [
        ("released", (100, 0, 0), PaymentMeaning.NOTHING, (0, 0, 0)),
        ("refunded", (100, 100, 12), PaymentMeaning.REFUNDED, (100, 100, 12)),
        ("recurring_confirmed", (100, 0, 0), PaymentMeaning.AGREEMENT, (0, 0, 0)),
        ("recurring_confirmed", (100, 100, 12), PaymentMeaning.AGREEMENT, (0, 0, 0)),
        ("preauth", (13900, 0, 0), PaymentMeaning.RESERVED, (13900, 0, 0)),
        ("preauth", (13900, 5000, 0), PaymentMeaning.CAPTURED, (13900, 5000, 0)),
        ("pending", (13900, 0, 0), PaymentMeaning.OPEN, (0, 0, 0)),
        ("preauth_failed", (13900, 100, 0), PaymentMeaning.UNKNOWN, (13900, 100, 0)),
    ],
)
def test_the_fixtures_that_mislead_are_read_right(status, amounts, meaning, counted):
    payment = transaction(status, amounts)
    assert (read(payment), held(payment)) == (meaning, counted)


@given(st.sampled_from(SEEN), st.tuples(*[st.integers(0, 10**12)] * 3))
def test_no_money_is_ever_read_as_nothing_or_under_way_once_it_was_captured(status, amounts):
    if amounts[1] or amounts[2]:
        assert read(transaction(status, amounts)) not in {PaymentMeaning.NOTHING, PaymentMeaning.OPEN}


# ── The document ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_is_read_with_all_its_facts():
    infos = (
        '<PaymentInfos><PaymentInfo name="checkout">019b</PaymentInfo><PaymentInfo name="note"/></PaymentInfos>'
        "<ChargebackEvents/><ReconciliationIdentifiers><ReconciliationIdentifier><Id>rec-1</Id></ReconciliationIdentifier>"
        "</ReconciliationIdentifiers>"
    )
    assert only(row(infos)) == Transaction(
        transaction_id="539101",
        payment_id="55aaaf42-1d1d-4b9d-9a68-2c677e2e454f",
        order_ref="ORD-1",
        status="preauth",
        currency="DKK",
        reserved=13900,
        captured=0,
        refunded=0,
        credited=0,
        created_at="2026-01-02 03:04:05",
        payment_infos={"checkout": "019b", "note": ""},
        reconciliations=("rec-1",),
        raw_flags=(),
        charged_back=0,
        scheme="",
        reserved_until=datetime(2026, 1, 9, 3, 4, 5, tzinfo=UTC),
    )


def test_an_unknown_order_is_an_answer_without_transactions():
    assert parse(xml(result="")) == Found((), at_limit=False)
    assert parse(
        b"<APIResponse><Header><ErrorCode>0</ErrorCode></Header><Body><Result/></Body></APIResponse>"
    ) == Found(())


def test_several_transactions_keep_the_order_of_the_answer():
    found = parse(
        xml(row() + row(TransactionId="539102", TransactionStatus="PREAUTH_failed", ReservedAmount="0.00"))
    )
    assert isinstance(found, Found)
    assert [(t.transaction_id, t.status) for t in found.transactions] == [
        ("539101", "preauth"),
        ("539102", "preauth_failed"),
    ]


@pytest.mark.parametrize(
    ("rows", "limit", "full"),
    [(4, 5, False), (5, 5, True), (6, 5, True), (DEFAULT_ROWS, 100, True), (11, 100, False)],
)
def test_an_answer_as_long_as_it_may_be_proves_no_absence(rows, limit, full):
    found = parse(xml(row() * rows), limit=limit)
    assert isinstance(found, Found)
    assert (len(found.transactions), found.at_limit) == (rows, full)


@pytest.mark.parametrize(
    ("changed", "flags", "currency", "reserved"),
    [
        ({"ReservedAmount": "139"}, (), "DKK", 13900),
        ({"ReservedAmount": "139.0000"}, (), "DKK", 13900),
        ({"ReservedAmount": "139.005"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "1.0E2"}, (), "DKK", 10000),
        ({"ReservedAmount": "1e3"}, (), "DKK", 100000),
        ({"ReservedAmount": "13900E-2"}, (), "DKK", 13900),
        ({"ReservedAmount": "+139."}, (), "DKK", 13900),
        ({"ReservedAmount": "139.00", "CapturedAmount": "-0.00"}, (), "DKK", 13900),
        ({"ReservedAmount": "-0"}, (), "DKK", 0),
        ({"ReservedAmount": "1e99"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "1e-3"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "0x8b"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "<Value>139.00</Value>"}, ("amount_unreadable",), "DKK", 0),
        ({"MerchantCurrencyAlpha": "BGN", "MerchantCurrency": "975"}, (), "BGN", 13900),
        ({"MerchantCurrencyAlpha": "ANG", "MerchantCurrency": "532"}, (), "ANG", 13900),
        ({"MerchantCurrencyAlpha": None, "MerchantCurrency": "191"}, (), "HRK", 13900),
        (
            {"MerchantCurrencyAlpha": "ISK", "MerchantCurrency": "352", "ReservedAmount": "1990.50"},
            ("amount_unreadable",),
            "ISK",
            0,
        ),
        ({"ReservedAmount": "-1.00"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "139,00"}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": "9" * 400}, ("amount_unreadable",), "DKK", 0),
        ({"ReservedAmount": None}, ("amount_missing",), "DKK", 0),
        ({"MerchantCurrencyAlpha": None}, (), "DKK", 13900),
        ({"MerchantCurrency": None}, (), "DKK", 13900),
        ({"MerchantCurrencyAlpha": "EUR"}, ("currency_conflict",), "", 0),
        ({"MerchantCurrencyAlpha": "ZZZ"}, ("currency_unknown",), "", 0),
        ({"MerchantCurrencyAlpha": None, "MerchantCurrency": None}, ("currency_unknown",), "", 0),
        ({"MerchantCurrencyAlpha": "JPY", "MerchantCurrency": "392"}, (), "JPY", 139),
        (
            {"MerchantCurrencyAlpha": "KWD", "MerchantCurrency": "414", "ReservedAmount": "1.005"},
            (),
            "KWD",
            1005,
        ),
        ({"TransactionStatus": "levitating"}, ("status_unknown",), "DKK", 13900),
        ({"CapturedAmount": "140.00"}, ("over_capture",), "DKK", 13900),
        ({"RefundedAmount": "1.00"}, ("over_refund",), "DKK", 13900),
        ({"CreditedAmount": "1.00"}, ("credited",), "DKK", 13900),
        ({"CreditedAmount": None}, (), "DKK", 13900),
    ],
)
def test_what_is_odd_is_flagged_and_never_guessed(changed, flags, currency, reserved):
    payment = only(row(**changed))
    assert (payment.raw_flags, payment.currency, payment.reserved) == (flags, currency, reserved)


@pytest.mark.parametrize(
    ("changed", "raw"),
    [
        ({"ReservedAmount": "1.990,50"}, {"reserved": "1.990,50"}),
        (
            {"CapturedAmount": "12 DKK", "RefundedAmount": "-1.00"},
            {"captured": "12 DKK", "refunded": "-1.00"},
        ),
        ({"CreditedAmount": "?"}, {"credited": "?"}),
        (
            {"MerchantCurrencyAlpha": "ZZZ", "MerchantCurrency": None},
            {
                "currency": "ZZZ",
                "reserved": "139.00",
                "captured": "0.00",
                "refunded": "0.00",
                "credited": "0.00",
            },
        ),
        (
            {"MerchantCurrencyAlpha": "EUR", "CreditedAmount": None},
            {"currency": "EUR / 208", "reserved": "139.00", "captured": "0.00", "refunded": "0.00"},
        ),
        (
            {"MerchantCurrencyAlpha": None, "MerchantCurrency": None, "ReservedAmount": "7"},
            {"currency": "", "reserved": "7"},
        ),
        ({}, {}),
    ],
)
def test_an_amount_that_cannot_be_read_is_kept_as_the_gateway_wrote_it(changed, raw):
    payment = only(row(**changed))
    assert {name: payment.raw_amounts.get(name) for name in raw} == raw
    assert bool(raw) == bool(payment.raw_amounts)
    if raw:
        assert read(payment) is PaymentMeaning.UNKNOWN


def test_what_is_kept_of_an_amount_is_printable():
    payment = only(row(ReservedAmount="\u202e139\u009b2J"))
    assert payment.raw_amounts == {"reserved": "\ufffd139\ufffd2J"}


def test_an_amount_that_comes_twice_is_not_chosen_from():
    twice = only(row("<ReservedAmount>1.00</ReservedAmount>"))
    assert twice.raw_amounts == {"reserved": "139.00 / 1.00"}
    assert read(twice) is PaymentMeaning.UNKNOWN
    same = only(row("<ReservedAmount>139.00</ReservedAmount>"))
    assert (same.reserved, same.raw_flags, read(same)) == (13900, (), PaymentMeaning.RESERVED)
    status = only(row("<TransactionStatus>released</TransactionStatus>"))
    assert read(status) is PaymentMeaning.UNKNOWN


@pytest.mark.parametrize(
    ("text", "surcharge", "flags", "raw"),
    [
        (None, 0, (), {}),
        ("0.00", 0, (), {}),
        ("1.50", 150, (), {}),
        ("1,50", 0, ("surcharge_unreadable",), {"surcharge": "1,50"}),
    ],
)
def test_the_surcharge_is_shown_beside_the_amounts_that_include_it(text, surcharge, flags, raw):
    payment = only(row(ReservedAmount="140.50", SurchargeAmount=text))
    assert (payment.surcharge, payment.reserved, payment.raw_flags, dict(payment.raw_amounts)) == (
        surcharge,
        14050,
        flags,
        raw,
    )
    assert read(payment) is PaymentMeaning.RESERVED


@pytest.mark.parametrize("result", ["Error", "Failed", "SystemError"])
@pytest.mark.parametrize("status", ["preauth", "invoice_initialized"])
def test_an_attempt_that_ended_in_an_error_without_money_is_over(status, result):
    def meaning(**changed):
        answer = parse(
            xml(row(**{"TransactionStatus": status, "ReservedAmount": "0.00", **changed}), result=result)
        )
        assert isinstance(answer, Found)
        return read(answer.transactions[0])

    assert meaning() is PaymentMeaning.NOTHING
    assert meaning(ReservedAmount="0.01") is PaymentMeaning.RESERVED
    assert meaning(CapturedAmount="0.01") is PaymentMeaning.CAPTURED
    assert meaning(ReservedAmount=None) is PaymentMeaning.UNKNOWN
    assert meaning(ReservedAmount="0,00") is PaymentMeaning.UNKNOWN
    assert meaning(TransactionStatus="captured") is PaymentMeaning.UNKNOWN
    assert meaning(TransactionStatus="created") is PaymentMeaning.OPEN
    assert meaning(TransactionStatus="") is PaymentMeaning.NOTHING
    assert meaning(TransactionStatus="levitating") is PaymentMeaning.UNKNOWN
    assert read(only(row(TransactionStatus=status, ReservedAmount="0.00"))) is PaymentMeaning.UNKNOWN


# ── Rows wherever they stand, and absence ─────────────────────────────────────────────────────────────────


def answer_of(body: str, *, before: str = "", after: str = "") -> bytes:
    return f"<APIResponse><Header><ErrorCode>0</ErrorCode></Header>{before}<Body>{body}</Body>{after}</APIResponse>".encode()


DEEP = "<a>" * 20, "</a>" * 20
ELSEWHERE = [
    "<Result>Success</Result><Actions><Action><Result>Success</Result><Transactions>%s</Transactions></Action></Actions>",
    "<Transactions/><Actions><Action>%s</Action></Actions>",
    "<Result/>%s",
    "<Result/><Payments>%s</Payments>",
    DEEP[0] + "%s" + DEEP[1],
]


@pytest.mark.parametrize("body", ELSEWHERE)
def test_a_transaction_is_found_wherever_it_stands(body):
    found = parse(answer_of(body % row()))
    assert isinstance(found, Found)
    assert [transaction.transaction_id for transaction in found.transactions] == ["539101"]
    moved_by = parse_movement(answer_of("<Result>Success</Result>" + body % row()), transaction_id="539101")
    assert isinstance(moved_by, Movement)
    assert moved_by.transaction == found.transactions[0]


def test_a_transaction_in_a_second_body_or_beside_it_is_found_too():
    for document in (
        answer_of("<Result/>", after=f"<Body><Transactions>{row()}</Transactions></Body>"),
        answer_of("<Result/>", before=f"<Transactions>{row()}</Transactions>"),
    ):
        found = parse(document)
        assert isinstance(found, Found)
        assert len(found.transactions) == 1


def test_a_transaction_inside_another_is_not_counted_and_makes_it_unclear():
    inner = row(TransactionId="2", ReservedAmount="10.00")
    found = parse(xml(row(f"<Children>{inner}</Children>") + row(TransactionId="3")))
    assert isinstance(found, Found)
    assert [(transaction.transaction_id, read(transaction)) for transaction in found.transactions] == [
        ("539101", PaymentMeaning.UNKNOWN),
        ("3", PaymentMeaning.RESERVED),
    ]
    assert found.transactions[0].raw_flags == ("transaction_nested",)


@pytest.mark.parametrize(
    "document",
    [
        answer_of(""),
        answer_of("<Transactions/>"),
        answer_of("<Result>Success</Result><Actions/>"),
        answer_of("<Result>Success</Result><Payments><Payment><Id>1</Id></Payment></Payments>"),
        answer_of("<Result/><Result/>"),
        answer_of("<Result>Success</Result><Transactions>539101</Transactions>"),
        answer_of("<Result>Success</Result><Transactions><transaction/></Transactions>"),
        answer_of("<Result/>539101"),
        answer_of("<Result><Success/></Result>"),
        answer_of("<Result/><ResultFilter><a><b/></a></ResultFilter>"),
        answer_of("<Result/>", after="<Body/>"),
        answer_of("<Result/>", before="<More/>"),
        answer_of('<Result/><x:Transactions xmlns:x="urn:x"/>'),
        answer_of("<Result>Error</Result>"),
        answer_of("<Result>Incomplete</Result>"),
        answer_of("<Result/><MerchantErrorMessage>No</MerchantErrorMessage>"),
        answer_of(f"<Result/><Transactions>{row().replace('Transaction>', 'transaction>')}</Transactions>"),
        answer_of(f"<Result/>{row()}<Odd><TransactionId>539102</TransactionId></Odd>"),
        b"<APIResponse><Body><Result/></Body><Header><ErrorCode>0</ErrorCode></Header></APIResponse>",
        b"<APIResponse><Header><ErrorCode>0</ErrorCode><ErrorCode>7</ErrorCode></Header><Body><Result/></Body></APIResponse>",
    ],
)
def test_what_is_not_the_documented_empty_answer_is_no_absence(document):
    assert isinstance(parse(document), Malformed)


@pytest.mark.parametrize(
    "body",
    [
        "<Result/>",
        "<Result></Result><ResultFilter><shop_orderid>ORD-1</shop_orderid></ResultFilter>",
        "\n  <Result>Success</Result>\n  <Transactions>\n  </Transactions>\n",
        "<ResultFilter/><Transactions/><Result>OK</Result>",
    ],
)
def test_the_documented_empty_answer_is_absence(body):
    found = parse(answer_of(body))
    assert isinstance(found, Found)
    assert found.transactions == ()


_NAMES = st.sampled_from(
    "APIResponse Header Body ErrorCode Date Result ResultFilter Transactions Transaction TransactionId Actions Action Payments "
    "ShopOrderId ReservedAmount transaction transactions Odd".split()
)
_TEXTS = st.sampled_from(["", " ", "0", "Success", "Error", "539101", "139.00"])
_TREES = st.recursive(
    st.tuples(_NAMES, _TEXTS, st.just([])),
    lambda inner: st.tuples(_NAMES, _TEXTS, st.lists(inner, max_size=3)),
    max_leaves=6,
)


def _written(tree) -> str:
    name, text, inner = tree
    return f"<{name}>{text}{''.join(map(_written, inner))}</{name}>"


_DOCUMENTED = re.compile(
    r"<APIResponse>\s*<Header>(?:<(?!ErrorCode>)(\w+)>[^<]*</\1>)*<ErrorCode>0</ErrorCode>(?:<(?!ErrorCode>)(\w+)>[^<]*</\2>)*</Header>\s*"
    r"<Body>\s*(?P<body>.*)</Body>\s*</APIResponse>",
    re.DOTALL,
)
_EMPTY_BODY = re.compile(
    r"(?:<Transactions>\s*</Transactions>\s*()|<ResultFilter>\s*(?:<(\w+)>[^<]*</\2>\s*)*</ResultFilter>\s*()"
    r"|<Result>\s*(?:Success)?\s*</Result>\s*())*"
)


@given(
    st.lists(_TREES, max_size=3),
    st.lists(_TREES, max_size=2),
    st.lists(_TREES, max_size=1),
    st.sampled_from(["", "x"]),
)
def test_no_document_is_read_as_absence_but_the_documented_empty_answer(inside, header, beside, text):
    document = (
        f"<APIResponse><Header>{''.join(map(_written, header))}<ErrorCode>0</ErrorCode></Header>"
        f"<Body><Result></Result>{''.join(map(_written, inside))}{text}</Body>{''.join(map(_written, beside))}</APIResponse>"
    )
    found = parse(document.encode())
    if isinstance(found, Found) and not found.transactions:
        documented = _DOCUMENTED.fullmatch(document)
        assert documented is not None
        assert _EMPTY_BODY.fullmatch(documented["body"])


def test_a_row_is_never_lost_to_the_bound_on_rows():
    assert isinstance(parse(xml("".join(row(TransactionId=str(n)) for n in range(200)))), Found)
    assert isinstance(parse(xml("".join(row(TransactionId=str(n)) for n in range(201)))), Malformed)


def test_a_binding_that_comes_twice_with_two_values_binds_nothing():
    def info(value: str) -> str:
        return f'<PaymentInfo name="checkout">{value}</PaymentInfo>'

    twice = only(row(f"<PaymentInfos>{info('mine')}{info('yours')}</PaymentInfos>"))
    assert (dict(twice.payment_infos), twice.raw_flags) == ({}, ("info_repeated",))
    same = only(row(f"<PaymentInfos>{info('mine')}{info('mine')}</PaymentInfos>"))
    assert (same.payment_infos, same.raw_flags) == ({"checkout": "mine"}, ())


def event(kind: str = "Chargeback", amount: str = "10.00", currency: str = "DKK") -> str:
    return (
        f"<ChargebackEvent><Date>2016-06-14T00:00:00+02:00</Date><Type>{kind}</Type><ReasonCode>4837</ReasonCode>"
        f"<Reason>No Cardholder Authorization</Reason><Amount>{amount}</Amount><Currency>{currency}</Currency>"
        "<AcquirerTransactionId>6134</AcquirerTransactionId><AdditionalInfo>&lt;info/&gt;</AdditionalInfo></ChargebackEvent>"
    )


UNCLEAR = ("chargeback_unclear",)


@pytest.mark.parametrize(
    ("events", "charged_back", "flags"),
    [
        # The vendor's notification of 2016 (C12): the type in mixed case, the currency by letters.
        (event(), 1000, ()),
        (event("CHARGEBACK", "139.00", "208"), 13900, ()),
        (event("chargeback", "139", ""), 13900, ()),
        (event("second_chargeback"), 1000, ()),
        (event() + event(amount="2.50"), 1250, ()),
        *[
            (event(amount="139.00") + event(kind, "39.00"), 10000, ())
            for kind in ("CHARGEBACK_REVERSED", "ChargebackReversal", "Reversed Chargeback", "Representment")
        ],
        (event() + event(amount="-10.00"), 0, ()),
        (event("CHARGEBACK_REVERSED") + event(), 0, ()),
        *[
            (event(kind), 1000, ())
            for kind in (
                "Chargeback first round",
                "CHARGEBACK_EVENT",
                "Second chargeback",
                "SecondChargeback",
                "1st Chargeback",
                "Chargeback (partial)",
                "charge-back",
                "Final chargeback received",
                "Arbitration chargeback",
            )
        ],
        (event() + event("Reversal of chargeback", "4.00"), 600, ()),
        *[
            (event(kind), 0, UNCLEAR)
            for kind in (
                "Retrieval",
                "Retrieval request",
                "Pre-arbitration",
                "Arbitration",
                "Second chargeback won",
                "Chargeback dispute",
                "Chargeback withdrawn",
                "Second chargeback after representment",
                "Reversal of fortune",
                "Fraud notice",
            )
        ],
        (event(amount="1.0E1"), 1000, ()),
        (event(amount="139.00") + event(amount="139.00"), 27800, UNCLEAR),
        (event().replace("ChargebackEvent>", "DisputeEvent>"), 0, UNCLEAR),
        ("taken back", 0, UNCLEAR),
        # More came back than was taken: a row is missing.
        (event("CHARGEBACK_REVERSED"), 0, UNCLEAR),
        (event("Dispute"), 0, UNCLEAR),
        (event("Pre-chargeback alert"), 0, UNCLEAR),
        (event("") + event(), 1000, UNCLEAR),
        (event(amount="10,00"), 0, UNCLEAR),
        (event(amount="") + event(), 1000, UNCLEAR),
        (event(currency="EUR"), 0, UNCLEAR),
        (event(currency="978") + event(currency="zzz"), 0, UNCLEAR),
        ("<ChargebackEvent/>", 0, UNCLEAR),
    ],
)
def test_chargebacks_add_up_less_their_reversals_and_what_is_unclear_is_flagged(events, charged_back, flags):
    payment = only(row(f"<ChargebackEvents>{events}</ChargebackEvents>", CapturedAmount="139.00"))
    assert (bool(payment.chargeback_events), payment.charged_back, payment.raw_flags) == (
        events != "taken back",
        charged_back,
        flags,
    )
    assert (read(payment), held(payment)) == (PaymentMeaning.CAPTURED, (13900, 13900, 0))


def test_every_event_is_kept_as_the_gateway_sent_it():
    events = (
        event()
        + event("Dispute", "10,00", "EUR")
        + event("CHARGEBACK_REVERSED", "4.00")
        + "<ChargebackEvent/>"
    )
    payment = only(row(f"<ChargebackEvents>{events}</ChargebackEvents>", CapturedAmount="139.00"))
    date = "2016-06-14T00:00:00+02:00"
    assert payment.chargeback_events == (
        ChargebackEvent("Chargeback", "10.00", "DKK", date, 1000),
        ChargebackEvent("Dispute", "10,00", "EUR", date, None),
        ChargebackEvent("CHARGEBACK_REVERSED", "4.00", "DKK", date, -400),
        ChargebackEvent("", "", "", "", None),
    )


@pytest.mark.parametrize(
    "extra",
    [
        event(),
        event("Retrieval"),
        "<Disputes><Dispute><Amount>1.00</Amount></Dispute></Disputes>",
        "<PreArbitration>open</PreArbitration>",
        f"<ChargebackEvents/><ChargebackEvents>{event()}</ChargebackEvents>",
    ],
)
def test_an_event_out_of_order_is_not_dropped(extra):
    payment = only(row(extra, CapturedAmount="139.00"))
    assert payment.chargeback_events
    assert payment.charged_back or "chargeback_unclear" in payment.raw_flags


def test_an_event_of_a_payment_in_an_unknown_currency_is_flagged():
    payment = only(
        row(
            f"<ChargebackEvents>{event(currency='')}</ChargebackEvents>",
            MerchantCurrencyAlpha="ZZZ",
            MerchantCurrency=None,
        )
    )
    assert (payment.charged_back, payment.chargeback_events[0].amount) == (0, "10.00")
    assert "chargeback_unclear" in payment.raw_flags


def test_without_chargebacks_there_are_none():
    payment = only(row("<ChargebackEvents/>"))
    assert (payment.chargeback_events, payment.charged_back, payment.raw_flags) == ((), 0, ())


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("2026-01-09 03:04:05", datetime(2026, 1, 9, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-09T03:04:05+02:00", datetime(2026, 1, 9, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-09T03:04:05.5Z", datetime(2026, 1, 9, 3, 4, 5, 500_000, tzinfo=UTC)),
        ("2026-01-09T03:04", datetime(2026, 1, 9, 3, 4, tzinfo=UTC)),
        ("2026-01-09", datetime(2026, 1, 9, tzinfo=UTC)),
    ],
)
def test_the_end_of_a_reservation_is_a_moment_in_utc(text, until):
    payment = only(row(AuthorisationExpiryDate=text))
    assert (payment.reserved_until, payment.raw_flags) == (until, ())


@pytest.mark.parametrize(
    "text",
    [
        "0000-00-00 00:00:00",
        "2026-02-30",
        "soon",
        "20260109",
        "2026-W01-1",
        "0001-01-01T00:00:00+14:00",
        "9" * 300,
    ],
)
def test_an_end_that_is_no_date_is_flagged_and_not_guessed(text):
    payment = only(row(AuthorisationExpiryDate=text))
    assert (payment.reserved_until, payment.raw_flags) == (None, ("expiry_unreadable",))
    assert read(payment) is PaymentMeaning.RESERVED


@pytest.mark.parametrize("text", [None, "", " "])
def test_a_reservation_without_an_end_has_none(text):
    payment = only(row(AuthorisationExpiryDate=text))
    assert (payment.reserved_until, payment.raw_flags) == (None, ())


@pytest.mark.parametrize(
    ("extra", "scheme"),
    [
        ("<CardInformation><Scheme>Visa</Scheme></CardInformation>", "visa"),
        ("<PaymentSchemeName>MasterCard</PaymentSchemeName>", "mastercard"),
        (
            "<CardInformation><Scheme/></CardInformation><PaymentSchemeName>Dankort</PaymentSchemeName>",
            "dankort",
        ),
        ("", ""),
    ],
)
def test_the_card_scheme_comes_from_either_of_its_two_places(extra, scheme):
    assert only(row(extra)).scheme == scheme


# ── Movements ─────────────────────────────────────────────────────────────────────────────────────────────


def moved(inner: str, rows: str = "", *, result: str = "Success") -> bytes:
    return xml(rows, result=result).replace(b"<Body>", f"<Body>{inner}".encode())


CAPTURE = "<CaptureAmount>0.20</CaptureAmount><CaptureCurrency>978</CaptureCurrency>"


def test_the_answer_to_a_capture_has_what_it_moved_and_the_totals():
    answer = parse_movement(moved(CAPTURE, row(CapturedAmount="139.00")), transaction_id="539101")
    assert isinstance(answer, Movement)
    assert (answer.result, answer.amount) == ("success", 20)
    assert answer.transaction is not None
    assert (answer.transaction.transaction_id, answer.transaction.captured) == ("539101", 13900)


@pytest.mark.parametrize(
    ("inner", "amount"),
    [
        ("<RefundedAmount>0.12</RefundedAmount><RefundCurrency>208</RefundCurrency>", 12),  # the XSD (C10)
        ("<RefundAmount>0.12</RefundAmount><RefundCurrency>DKK</RefundCurrency>", 12),  # a fixture (C12)
        ("<RefundedAmount>12</RefundedAmount>", 1200),  # in the transaction's currency
        ("<CaptureAmount>12</CaptureAmount><CaptureCurrency>392</CaptureCurrency>", 12),  # JPY
        ("<CaptureAmount>1.234</CaptureAmount><CaptureCurrency>208</CaptureCurrency>", None),
        ("<CaptureAmount>1.00</CaptureAmount><CaptureCurrency>000</CaptureCurrency>", None),
        ("", None),
    ],
)
def test_what_was_moved_is_exact_or_not_stated(inner, amount):
    answer = parse_movement(moved(inner, row()), transaction_id="539101")
    assert isinstance(answer, Movement)
    assert answer.amount == amount


def test_a_refused_capture_is_a_movement_with_its_word():
    """Capturing what is captured already: HTTP 200, ErrorCode 0, Result Error (part 1.7)."""
    inner = "<CaptureAmount>0.00</CaptureAmount><CaptureCurrency>208</CaptureCurrency><MerchantErrorMessage>Anna</MerchantErrorMessage>"
    body = moved(inner, row(CapturedAmount="139.00"), result="Error")
    answer = parse_movement(body, transaction_id="539101")
    assert isinstance(answer, Movement)
    assert (answer.result, answer.amount) == ("error", 0)
    assert "Anna" not in repr(answer)


def test_the_deprecated_word_stands_in_for_a_missing_result():
    body = moved("<CancelResult>Success</CancelResult>", result="")
    answer = parse_movement(body, transaction_id="539101")
    assert answer == Movement("success", None, None)


@pytest.mark.parametrize(
    ("body", "transaction_id"),
    [
        (moved(CAPTURE, row(), result=""), "539101"),
        (moved(CAPTURE, row()), "539102"),
        (moved(CAPTURE, row() + row(TransactionId="539102")), "539103"),
        (moved(CAPTURE, row(TransactionId=None)), "539101"),
        (b"<html/>", "539101"),
        (b"", "539101"),
    ],
)
def test_an_answer_that_does_not_say_what_came_of_the_call_is_malformed(body, transaction_id):
    assert isinstance(parse_movement(body, transaction_id=transaction_id), Malformed)


def test_of_several_transactions_the_requested_transaction_counts():
    rows = row(TransactionId="539102") + row(ReservedAmount="1.00")
    answer = parse_movement(moved(CAPTURE, rows), transaction_id="539101")
    assert isinstance(answer, Movement)
    assert answer.transaction is not None
    assert answer.transaction.reserved == 100


def test_an_error_code_of_a_movement_is_a_refusal():
    assert repr(parse_movement(xml(code="10000002"), transaction_id="539101")) == "RequestError('10000002')"


def test_an_error_code_is_a_refusal_and_its_message_is_not_repeated():
    assert repr(parse(xml(code="10000001"))) == "RequestError('10000001')"


BILLION_LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><APIResponse><Header><ErrorCode>&j;</ErrorCode></Header><Body/></APIResponse>"
)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(BILLION_LAUGHS, id="billion laughs"),
        pytest.param(
            b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]><r>&x;</r>', id="external entity"
        ),
        pytest.param(b'<!DOCTYPE r SYSTEM "http://example.com/r.dtd"><APIResponse/>', id="external DTD"),
        pytest.param(b"<!DOCTYPE APIResponse>" + xml(row())[21:], id="harmless DTD"),
        pytest.param(b"", id="empty"),
        pytest.param(b"OK", id="text"),
        pytest.param(b"<html><body>Please log in</body></html>", id="a page"),
        pytest.param(xml(row())[:-30], id="truncated"),
        pytest.param(xml(row()) + b"<more/>", id="two roots"),
        pytest.param(b'<?xml version="1.0" encoding="klingon"?><APIResponse/>', id="unknown encoding"),
        pytest.param(b"<APIResponse/>", id="no header"),
        pytest.param(b"<APIResponse><Header><ErrorCode>0</ErrorCode></Header></APIResponse>", id="no body"),
        pytest.param(xml(code=""), id="no error code"),
        pytest.param(xml(code="zero"), id="error code in words"),
        pytest.param(xml(row(TransactionId=None)), id="no transaction id"),
        pytest.param(xml(row() + row(TransactionId=" ")), id="blank transaction id"),
        pytest.param(b"<APIResponse>" + b"<a>" * 100_000, id="deep"),
        pytest.param(b" " * (LARGEST + 1), id="huge"),
    ],
)
def test_a_document_that_cannot_be_trusted_is_a_value(body):
    assert isinstance(parse(body), Malformed)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise(body):
    assert isinstance(parse(body), Malformed)
    assert isinstance(parse_movement(body, transaction_id="1"), Malformed)


_MARKUP = st.sampled_from(
    ["<APIResponse>", "</APIResponse>", "<Header>", "</Header>", "<ErrorCode>0</ErrorCode>", "<Body>", "</Body>",
     "<Transactions>", "</Transactions>", "<Transaction>", "</Transaction>", "<TransactionId>1</TransactionId>",
     "<PaymentInfos><PaymentInfo/></PaymentInfos>", "<!--x-->", "<?p?>", "<![CDATA[x]]>", "&amp;", "&x;"]
)  # fmt: skip


@given(st.lists(_MARKUP, max_size=25))
def test_no_markup_makes_the_reader_raise(pieces):
    document = "".join(pieces).encode()
    assert isinstance(parse(document), Found | RequestError | Malformed)
    assert isinstance(parse_movement(document, transaction_id="1"), Movement | RequestError | Malformed)


@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.text(st.characters(codec="utf-8", exclude_characters="<&"), max_size=40) | st.none(),
    ),
)
def test_no_content_makes_the_reader_raise_and_nothing_unreadable_becomes_money(changed):
    answer = parse(xml(row(**changed)))
    if isinstance(answer, Found):
        for transaction in answer.transactions:
            assert (
                min(transaction.reserved, transaction.captured, transaction.refunded, transaction.credited)
                >= 0
            )
            assert transaction.currency or read(transaction) is PaymentMeaning.UNKNOWN
            held(transaction)


def test_what_a_person_reads_of_an_answer_steers_no_terminal():
    event = "<ChargebackEvents><ChargebackEvent><Type>\u202eDispute\x9b!</Type></ChargebackEvent></ChargebackEvents>"
    document = xml(row(TransactionStatus="held\u202e\u2066")).replace(
        b"</Transaction>", event.encode() + b"</Transaction>"
    )
    (payment,) = parse(document).transactions
    assert payment.status == "held\ufffd\ufffd"
    assert [each.kind for each in payment.chargeback_events] == ["\ufffdDispute\ufffd!"]
