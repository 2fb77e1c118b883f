"""What the gateway posts: proofs are checked against known vectors, and no body raises."""

from __future__ import annotations

import gzip
import hashlib
import hmac
from dataclasses import fields, replace
from urllib.parse import quote_plus, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.callback_body import LARGEST, MOST_FIELDS
from orchestrator.gateway.callbacks import (
    LONGEST,
    CallbackFacts,
    Grade,
    checksum_ok,
    grade,
    read_body,
    signature_ok,
    signed_at,
)
from orchestrator.text import neutralised

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

# The vectors of the facts (2.4).
SECRET = "0123456789abcdef"
BODY = b"shop_orderid=ORD-1&status=succeeded"
SIGNATURE = "60ad0850aa657543c9b94d10022e9be8b1b884c8b341de3fee9935be1f07aa31"
HEADER = f"t=1767600000;s0={SIGNATURE}"
CHECKED = {
    "amount": "139.00",
    "currency": "208",
    "shop_orderid": "000000081",
    "checksum": "3b007b8c3869741109e016985e5289fd",
}


# ── Signature ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "secrets", "expected"),
    [
        (HEADER, [SECRET], Grade.SIGNED),
        (f" t=1767600000 ; s0={SIGNATURE} ", [SECRET], Grade.SIGNED),
        (f"s7={SIGNATURE};t=1767600000", [SECRET], Grade.SIGNED),
        (f"t=1767600000;s0={'0' * 64};s1={SIGNATURE}", [SECRET], Grade.SIGNED),
        (HEADER, ["another-secret-0", SECRET], Grade.SIGNED),
        (HEADER, ["another-secret-0"], Grade.WRONG),
        (f"t=1767600000;s0={SIGNATURE.upper()}", [SECRET], Grade.SIGNED),
        (f"t=1767600000;s0={SIGNATURE.swapcase()[:32]}{SIGNATURE[32:]}", [SECRET], Grade.SIGNED),
        (f"t=1767600000;s0={'0' * 64};s1={SIGNATURE.upper()}", ["another-secret-0", SECRET], Grade.SIGNED),
        (f"t=1767600000;s0={SIGNATURE.upper()}", ["another-secret-0"], Grade.WRONG),
        (HEADER.upper(), [SECRET], Grade.WRONG),
        (f"t=1767600001;s0={SIGNATURE}", [SECRET], Grade.WRONG),
        (f"t=1767600000;v0={SIGNATURE}", [SECRET], Grade.WRONG),
        (f"s0={SIGNATURE}", [SECRET], Grade.WRONG),
        ("t=1767600000", [SECRET], Grade.WRONG),
        ("t=1767600000;s0=", [SECRET], Grade.WRONG),
        ("nonsense", [SECRET], Grade.WRONG),
        ("t=1;s0=\udcff", [SECRET], Grade.WRONG),
        (";" * 100_000, [SECRET], Grade.WRONG),
        ("", [SECRET], Grade.MISSING),
        (None, [SECRET], Grade.MISSING),
        (HEADER, [], Grade.UNCHECKED),
        (HEADER, [""], Grade.UNCHECKED),
        (None, [], Grade.UNCHECKED),
    ],
)
def test_a_signature_is_graded(header, secrets, expected):
    assert signature_ok(header, BODY, secrets, NOON) is expected


def test_one_changed_byte_breaks_the_signature():
    assert signature_ok(HEADER, BODY.replace(b"ORD-1", b"ORD-2"), [SECRET], NOON) is Grade.WRONG
    assert signature_ok(HEADER, BODY + b"&status=failed", [SECRET], NOON) is Grade.WRONG


def test_an_empty_secret_never_signs():
    empty = hmac.new(b"", BODY + b".1", hashlib.sha256).hexdigest()
    assert signature_ok(f"t=1;s0={empty}", BODY, ["", SECRET], NOON) is Grade.WRONG


NOON = 1767614400  # 2026-01-05T12:00:00Z
DAY = 86400


def signed(stamp: str) -> str:
    signature = hmac.new(SECRET.encode(), BODY + b"." + stamp.encode(), hashlib.sha256).hexdigest()
    return f"t={stamp};s0={signature}"


@pytest.mark.parametrize(
    ("stamp", "made"),
    [
        (str(NOON), NOON),
        (f"{NOON}000", NOON),
        (f"{NOON}000000", NOON),
        (f"{NOON}000000000", NOON),
        ("2026-01-05T12:00:00Z", NOON),
        ("2026-01-05T13:00:00+01:00", NOON),
        ("2026-01-05 12:00:00.000+00:00", NOON),
        # Whatever is left open is read as the latest that it can mean: in the westernmost time zone, or the
        # end of that day there.
        ("2026-01-05 12:00:00", NOON + DAY / 2),
        ("2026-01-05", NOON + DAY),
    ],
)
def test_a_signature_of_a_day_ago_is_stale_whatever_its_unit(stamp, made):
    assert signed_at(stamp) == made
    grades = [signature_ok(signed(stamp), BODY, [SECRET], made + age) for age in (0, DAY, DAY + 1)]
    assert grades == [Grade.SIGNED, Grade.SIGNED, Grade.STALE]
    assert signature_ok(signed(stamp), BODY, [SECRET], made + 61, max_age=60.0) is Grade.STALE


@pytest.mark.parametrize("stamp", ["1", "17676144", "20260105", "17676144000", "0000000001", "9" * 19])
def test_where_the_age_is_unknown_a_signature_is_not_fresh(stamp):
    assert signed_at(stamp) is None or stamp == "9" * 19
    now = NOON + 10_000_000 * DAY
    assert signature_ok(signed(stamp), BODY, [SECRET], now) is Grade.STALE


@pytest.mark.parametrize(
    "stamp",
    ["noon", "٤٤٤٤٤٤٤٤٤٤", "9" * 40, "-1767614400", "1767614400.5", "1767614400 ", "0x69", "2026-13", "2026-W02-1", "12:00:00",
     "2026-01-05T12:00:00+01:00[x]", "Mon, 05 Jan 2026 12:00:00 GMT"],
)  # fmt: skip
def test_a_timestamp_that_is_neither_digits_nor_a_date_signs_nothing(stamp):
    assert signature_ok(signed(stamp), BODY, [SECRET], NOON) is Grade.WRONG


DOTTED = b"shop_orderid=A-1&amount=139.00&ip=10.0.0.1&status=succeeded&date=2026-01-05 12:00:00"


@pytest.mark.parametrize(
    "stamp",
    [
        str(NOON),
        f"{NOON}000",
        "2026-01-05T12:00:00",
        "2026-01-05T12:00:00.123",
        "2026-01-05T12:00:00.123456789",
        "2026-01-05T12:00:00.123Z",
    ],
)
def test_the_boundary_between_body_and_timestamp_cannot_be_moved(stamp):
    whole = DOTTED + b"." + stamp.encode()
    signature = hmac.new(SECRET.encode(), whole, hashlib.sha256).hexdigest()
    grades = {}
    for place, byte in enumerate(whole):
        if byte == ord("."):
            body, claimed = whole[:place], whole[place + 1 :].decode()
            grades[body] = signature_ok(f"t={claimed};s0={signature}", body, [SECRET], NOON)
    assert grades.pop(DOTTED) is Grade.SIGNED
    assert grades
    assert Grade.SIGNED not in grades.values()


def test_a_timestamp_of_the_future_counts_as_a_wrong_clock():
    assert signature_ok(signed(str(NOON + 10 * DAY)), BODY, [SECRET], NOON) is Grade.SIGNED


def test_a_replay_is_stale_and_a_forgery_of_the_same_age_is_wrong():
    header = signed(str(NOON))
    assert signature_ok(header, BODY, [SECRET], NOON + 2 * DAY) is Grade.STALE
    assert signature_ok(header, BODY, ["another-secret-0"], NOON + 2 * DAY) is Grade.WRONG
    assert (
        signature_ok(header.replace(str(NOON), str(NOON + 2 * DAY)), BODY, [SECRET], NOON + 2 * DAY)
        is Grade.WRONG
    )


def test_while_secrets_change_hands_both_work():
    for secrets in ([SECRET], ["the newer secret", SECRET], [SECRET, "the newer secret"]):
        assert signature_ok(signed(str(NOON)), BODY, secrets, NOON) is Grade.SIGNED


def test_only_consistent_amounts_and_status_count():
    believed = {grade for grade in Grade if grade.is_evidence}
    assert believed == {Grade.SIGNED, Grade.CHECKSUM, Grade.UNCHECKED}


@given(st.text(max_size=60))
def test_no_timestamp_makes_the_age_raise(stamp):
    assert signed_at(stamp) is None or isinstance(signed_at(stamp), float)


@given(st.text(max_size=200), st.binary(max_size=50))
def test_no_header_makes_the_check_raise_or_pass(header, raw):
    assert signature_ok(header, raw, [SECRET], 0.0) in {Grade.WRONG, Grade.MISSING}


# ── Checksum ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_known_checksum_matches():
    assert checksum_ok(CHECKED, "s3cret")


def test_a_checksum_in_capitals_matches_too():
    assert checksum_ok({**CHECKED, "checksum": CHECKED["checksum"].upper()}, "s3cret")
    assert not checksum_ok({**CHECKED, "checksum": CHECKED["checksum"].upper()}, "other")


@pytest.mark.parametrize("name", ["amount", "currency", "shop_orderid", "checksum"])
def test_a_changed_or_missing_field_breaks_the_checksum(name):
    assert not checksum_ok({**CHECKED, name: CHECKED[name] + "0"}, "s3cret")
    assert not checksum_ok({key: value for key, value in CHECKED.items() if key != name}, "s3cret")


def test_an_empty_secret_or_checksum_proves_nothing():
    unkeyed = hashlib.md5(b"amount=139.00,currency=208,secret=,shop_orderid=000000081").hexdigest()  # noqa: S324
    assert not checksum_ok({**CHECKED, "checksum": unkeyed}, "")
    assert not checksum_ok({**CHECKED, "checksum": ""}, "s3cret")
    assert not checksum_ok({**CHECKED, "checksum": "é\udcff"}, "s3cret")


@pytest.mark.parametrize(
    ("header", "checked", "secrets", "expected"),
    [
        (HEADER, {}, [SECRET], Grade.SIGNED),
        (HEADER, CHECKED, ["s3cret", SECRET], Grade.SIGNED),
        (None, CHECKED, [SECRET, "s3cret"], Grade.CHECKSUM),
        (HEADER, CHECKED, ["s3cret"], Grade.CHECKSUM),
        (None, CHECKED, ["other"], Grade.WRONG),
        (HEADER, {}, ["other"], Grade.WRONG),
        (None, {}, ["other"], Grade.MISSING),
        (HEADER, CHECKED, [], Grade.UNCHECKED),
    ],
)
def test_the_best_proof_counts(header, checked, secrets, expected):
    assert grade(header, BODY, lambda: CallbackFacts(checked=checked), secrets, now=NOON) is expected


def test_a_stale_signature_is_not_made_young_by_a_checksum():
    facts = CallbackFacts(checked=CHECKED)
    now = 1767600000 + 2 * DAY
    assert grade(HEADER, BODY, lambda: facts, [SECRET, "s3cret"], now=now) is Grade.STALE
    assert grade(HEADER, BODY, lambda: facts, [SECRET, "s3cret"], now=now, max_age=3.0 * DAY) is Grade.SIGNED


# ── Form bodies ───────────────────────────────────────────────────────────────────────────────────────────


POSTED = {
    "shop_orderid": "000000081",
    "transaction_id": "539101",
    "payment_id": "55aaaf42-1d1d-4b9d-9a68-2c677e2e454f",
    "amount": "139.00",
    "currency": "208",
    "type": "paymentAndCapture",
    "status": "Succeeded",
    "payment_status": "PREAUTH",
    "require_capture": "true",
    "error_message": "",
    "masked_credit_card": "411111******1111",
    "transaction_info[checkout]": "019b0000-0000-7000-8000-000000000001",
    "xml": "<APIResponse/>\n",
    "checksum": CHECKED["checksum"],
}

READ = CallbackFacts(
    order_ref="000000081",
    transaction_id="539101",
    status="succeeded",
    amount=13900,
    currency="DKK",
    checkout="019b0000-0000-7000-8000-000000000001",
    require_capture=True,
    checked=CHECKED,
)


def form(**changed: str) -> bytes:
    return urlencode({**POSTED, **changed}).encode()


@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=UTF-8", FORM.upper()])
def test_a_form_is_read(content_type):
    assert read_body(content_type, form()) == READ


def test_what_was_read_from_a_form_can_be_checked():
    assert grade(None, form(), lambda: read_body(FORM, form()), ["s3cret"], now=NOON) is Grade.CHECKSUM


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data; boundary=x", ";;"])
def test_an_unexpected_content_type_is_flagged_and_the_body_still_read(content_type):
    assert read_body(content_type, form()) == replace(READ, flags=("content_type_unexpected",))


@pytest.mark.parametrize(
    ("changed", "name", "value", "flags"),
    [
        ({"amount": "10.005"}, "amount", None, ("amount_unreadable",)),
        ({"amount": "-1.00"}, "amount", None, ("amount_unreadable",)),
        ({"amount": "sNaN"}, "amount", None, ("amount_unreadable",)),
        ({"amount": "1e999999999"}, "amount", None, ("amount_unreadable",)),
        ({"amount": ""}, "amount", None, ()),
        ({"amount": "0"}, "amount", 0, ()),
        ({"currency": "999999"}, "currency", None, ("currency_unknown",)),
        ({"currency": "²"}, "currency", None, ("currency_unknown",)),
        ({"currency": "dkk"}, "currency", "DKK", ()),
        ({"require_capture": "perhaps"}, "require_capture", None, ("wrong_type",)),
        ({"require_capture": "false"}, "require_capture", False, ()),
        ({"error_message": " Card Declined "}, "error_message", "Card Declined", ()),
        ({"error_message": "x" * 300}, "error_message", "x" * LONGEST, ("text_cut",)),
        ({"shop_orderid": "a\0b"}, "order_ref", "a\ufffdb", ("character_replaced",)),
        ({"shop_orderid": "4711\x1b[2J"}, "order_ref", "4711\ufffd[2J", ("character_replaced",)),
        ({"transaction_id": "1\u202e2"}, "transaction_id", "1\ufffd2", ("character_replaced",)),
        ({"status": "held\x9b"}, "status", "held\ufffd", ("character_replaced", "status_unknown")),
        ({"shop_orderid": "A\t1"}, "order_ref", "A\ufffd1", ("character_replaced",)),
        ({"error_message": "Declined\r\ntry again"}, "error_message", "Declined try again", ()),
        ({"shop_orderid": "usd_plan::4711 #2"}, "order_ref", "usd_plan::4711 #2", ()),
        ({"status": "ChargebackEvent"}, "status", "chargebackevent", ()),
        ({"status": "Pending"}, "status", "pending", ()),
        ({"status": "Reversed"}, "status", "reversed", ("status_unknown",)),
        ({"sca_exemption": "TRA"}, "order_ref", "000000081", ()),
        ({"avs_code": "S", "avs_text": "not available"}, "order_ref", "000000081", ()),
        ({"transaction_info[colour]": "red"}, "order_ref", "000000081", ()),
        ({"shop_orderid": ""}, "order_ref", None, ()),
    ],
)
def test_odd_fields_are_flagged_and_never_guessed(changed, name, value, flags):
    facts = read_body(FORM, form(**changed))
    assert (getattr(facts, name), facts.flags) == (value, flags)


def test_of_a_field_posted_twice_the_first_counts():
    facts = read_body(FORM, form() + b"&shop_orderid=OTHER")
    assert (facts.order_ref, facts.flags) == ("000000081", ("field_repeated",))


def test_bytes_that_are_no_utf8_are_flagged():
    assert read_body(FORM, b"shop_orderid=%ff%fe").flags == ("not_utf8",)
    assert read_body(FORM, b"shop_orderid=\xff\xfe").flags == ("not_utf8",)
    assert read_body(FORM, b"shop_orderid=" + quote_plus("Ørder-1").encode()).order_ref == "Ørder-1"


def test_a_form_of_endless_fields_is_not_read():
    assert read_body(FORM, b"&".join([b"a=1"] * (MOST_FIELDS + 1))).flags == ("too_many_fields",)


def test_a_body_of_nothing_says_nothing():
    assert read_body(FORM, b"") == read_body(JSON, b" \r\n") == CallbackFacts(flags=("empty",))
    assert read_body(FORM, b"&&&").flags == ("not_form",)


def test_neither_shopper_data_nor_proofs_are_printed():
    shown = repr(read_body(FORM, form(error_message="Anna", xml="<secret/>")))
    assert not any(word in shown for word in ("Anna", "secret", "4111", CHECKED["checksum"]))


# ── Multipart forms, marks, compression ───────────────────────────────────────────────────────────────────


def multipart(fields: dict[str, str] = POSTED, boundary: str = "b", end: str = "--") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    return "".join((*parts, f"--{boundary}{end}\r\n")).encode()


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=b", 'Multipart/Form-Data; charset=utf-8; boundary="b"']
)
def test_a_multipart_form_says_the_same_as_any_form(content_type):
    assert read_body(content_type, multipart()) == READ
    assert read_body(content_type, b"\r\n" + multipart()) == READ


def test_what_was_read_from_a_multipart_form_can_be_checked():
    content_type = "multipart/form-data; boundary=b"
    assert (
        grade(None, multipart(), lambda: read_body(content_type, multipart()), ["s3cret"], now=NOON)
        is Grade.CHECKSUM
    )


def test_of_a_part_sent_twice_the_first_counts_and_files_say_nothing():
    content_type = "multipart/form-data; boundary=b"
    twice = multipart(end="")[: -len("--b\r\n")] + multipart({"shop_orderid": "OTHER"})
    facts = read_body(content_type, twice)
    assert (facts.order_ref, facts.flags) == ("000000081", ("field_repeated",))
    file = (
        b'--b\r\nContent-Disposition: form-data; name="shop_orderid"; filename="x"\r\nContent-Type: text/plain\r\n\r\n4711\r\n'
        b"--b\r\nContent-Type: text/plain\r\n\r\nno name\r\n--b--\r\n"
    )
    assert read_body(content_type, file) == CallbackFacts(flags=("not_form",))


@pytest.mark.parametrize(
    ("raw", "flag"),
    [
        (multipart({f"f{number}": "x" for number in range(MOST_FIELDS + 1)}), "too_many_fields"),
        (multipart(end=""), "not_form"),
        (multipart()[:-20], "not_form"),
        (b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\n\r\n--b--\r\n", "not_form"),
        (b"--b\r\nContent-Disposition: " + b"x" * 10_000 + b"\r\n\r\n\r\n--b--\r\n", "not_form"),
    ],
)
def test_a_multipart_form_without_bounds_or_end_is_not_read(raw, flag):
    assert read_body("multipart/form-data; boundary=b", raw) == CallbackFacts(flags=(flag,))


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [
        (FORM, MARK + form()),
        (FORM, b"%EF%BB%BF" + form()),
        (FORM, b"%ef%bb%bf" + form()),
        (FORM, ("\ufeff" + form().decode()).encode("utf-16-le")),
        ("multipart/form-data; boundary=b", MARK + multipart()),
        (FORM, gzip.compress(form(), mtime=0)),
        (FORM, gzip.compress(MARK + form(), mtime=0)),
        ("multipart/form-data; boundary=b", gzip.compress(multipart(), mtime=0)),
    ],
)
def test_neither_a_byte_order_mark_nor_compression_changes_what_a_form_says(content_type, raw):
    assert read_body(content_type, raw) == READ


@pytest.mark.parametrize(
    "encode", [lambda raw: MARK + raw, gzip.compress, lambda raw: gzip.compress(MARK + raw, mtime=0)]
)
@pytest.mark.parametrize("content_type", [JSON, "text/plain"])
def test_neither_a_byte_order_mark_nor_compression_changes_what_json_says(encode, content_type):
    assert read_body(content_type, encode(msgspec.json.encode(SENT))).order_ref == "ORD-1"


@pytest.mark.parametrize(
    ("raw", "flag"),
    [
        (gzip.compress(b"a" * (LARGEST + 1), mtime=0), "too_large"),
        (gzip.compress(b"\0" * 20_000_000, mtime=0), "too_large"),
        (gzip.compress(form(), mtime=0)[:-4], "not_gzip"),
        (gzip.compress(form(), mtime=0)[:20], "not_gzip"),
        (b"\x1f\x8b", "not_gzip"),
        (b"\x1f\x8bshop_orderid=1", "not_gzip"),
    ],
)
def test_what_inflates_beyond_the_bound_or_not_at_all_is_not_read(raw, flag):
    assert read_body(FORM, raw) == CallbackFacts(flags=(flag,))


def test_the_largest_body_is_still_read_when_it_was_compressed():
    padded = form() + b"&padding=" + b"x" * (LARGEST - len(form()) - len("&padding="))
    assert len(padded) == LARGEST
    assert read_body(FORM, gzip.compress(padded, mtime=0)) == READ


# ── JSON bodies ───────────────────────────────────────────────────────────────────────────────────────────


SENT = {
    "requiresCapture": False,
    "status": "SUCCEEDED",
    "customerErrorMessage": None,
    "paymentId": "55aaaf42-1d1d-4b9d-9a68-2c677e2e454f",
    "sessionId": "8c0e-1",
    "order": {"orderId": "ORD-1", "amount": 139.5, "currency": "DKK"},
    "cardInformation": {"lastFourDigits": "1111"},
}


@pytest.mark.parametrize("content_type", [JSON, "application/json;charset=utf-8", "application/problem+json"])
def test_json_is_read(content_type):
    assert read_body(content_type, msgspec.json.encode(SENT)) == CallbackFacts(
        order_ref="ORD-1",
        status="succeeded",
        amount=13950,
        currency="DKK",
        require_capture=False,
    )


def test_json_under_another_name_is_recognised():
    facts = read_body("text/plain", b" " + msgspec.json.encode(SENT))
    assert (facts.order_ref, facts.flags) == ("ORD-1", ("content_type_unexpected",))


@pytest.mark.parametrize("where", [SENT, SENT["order"]])
def test_our_own_id_is_found_in_either_place(where):
    body = msgspec.json.decode(msgspec.json.encode(SENT))
    target = body if where is SENT else body["order"]
    target["transactionInfo"] = {"checkout": "019b"}
    assert read_body(JSON, msgspec.json.encode(body)).checkout == "019b"


@pytest.mark.parametrize(
    ("raw", "flags"),
    [
        (b"{", ("not_json",)),
        (b"[]", ("not_an_object",)),
        (b"[" * 200_000, ("not_json",)),
        (b'{"status":"\xff"}', ("not_json",)),
        (b'{"status":"\\ud800"}', ("not_json",)),
        (b'{"status":7.5,"order":[]}', ("wrong_type",)),
        (b'{"status":"a\\u0000b"}', ("character_replaced", "status_unknown")),
        (b'{"status":"UNKNOWN"}', ("status_unknown",)),
        (b'{"status":"NEW","riskScore":7}', ()),
        (b'{"order":{"orderId":"A","shop":"B"}}', ()),
        (b'{"order":{"amount":10.005,"currency":"DKK"}}', ("amount_unreadable",)),
        (b'{"order":{"amount":true,"currency":"DKK"}}', ("amount_unreadable",)),
        (b'{"order":{"amount":' + b"9" * 4000 + b',"currency":"DKK"}}', ("amount_unreadable",)),
        (b'{"order":{"orderId":' + b"9" * 4000 + b"}}", ("wrong_type",)),
        (b'{"order":{"amount":1,"currency":"ZZZ"}}', ("currency_unknown",)),
    ],
)
def test_odd_json_is_flagged(raw, flags):
    assert read_body(JSON, raw).flags == flags


# ── Anything at all ───────────────────────────────────────────────────────────────────────────────────────


def storable(facts: CallbackFacts) -> bool:
    texts = [value for item in fields(facts) if isinstance(value := getattr(facts, item.name), str)]
    return all(neutralised(text) == text and len(text) <= LONGEST and text.encode() for text in texts)


_KINDS = st.sampled_from([FORM, JSON, "", "text/plain", "multipart/form-data; boundary=b"])
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SENT, "orderId", "amount", "currency"]), inner),
    max_leaves=12,
)  # fmt: skip


@given(
    _KINDS | st.text(max_size=30),
    st.binary(max_size=300),
    st.sampled_from([b"", MARK, b"\x1f\x8b\x08", b"--b\r\n", b"\xff\xfe"]),
)
def test_no_bytes_make_the_reader_raise(content_type, raw, before):
    assert storable(read_body(content_type, before + raw))
    assert storable(read_body(content_type, gzip.compress(before + raw, mtime=0)))


@given(st.dictionaries(st.sampled_from(sorted(POSTED)), st.text(max_size=30)))
def test_no_form_makes_the_reader_raise(posted):
    assert storable(read_body(FORM, urlencode(posted).encode()))


@given(_ANY_JSON)
def test_no_json_makes_the_reader_raise(body):
    raw = msgspec.json.encode(body)
    assert storable(read_body(JSON, raw))
