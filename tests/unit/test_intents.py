from __future__ import annotations

import copy
import json
import time
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import intents
from orchestrator.callback_urls import CallbackUrls
from orchestrator.intents import BODY_LIMIT, Intent, IntentRejected

CHECKOUT = UUID("019aa000-0000-7000-8000-000000000001")
URLS = CallbackUrls(
    "https://pay.example/s", "https://pay.example/f", "https://pay.example/r", "https://pay.example/n"
)
BODY = {
    "order": {
        "orderId": "A-1001",
        "amount": {"value": 139.00, "currency": "DKK"},
        "orderLines": [
            {"itemId": "mug", "description": "Mug", "quantity": 2, "unitPrice": 50, "taxAmount": 25},
            {
                "itemId": "ship",
                "description": "Shipping",
                "quantity": 1,
                "unitPrice": 14.0,
                "goodsType": "shipment",
            },
        ],
        "customer": {
            "firstName": "Ada",
            "lastName": "Example",
            "email": "ada@example.com",
            "billingAddress": {"street": "Street 1", "city": "Aarhus", "country": "DK", "zipCode": "8000"},
        },
        "transactionInfo": {"basket": "b-7"},
    },
    "callbacks": {
        "success": {"type": "URL", "value": "https://shop.example/paid?lang=da#top"},
        "failure": {"type": "URL", "value": "https://shop.example/not-paid"},
    },
    "configuration": {"paymentType": "PAYMENT"},
}
MISSING = object()


def body(path: str = "", value: object = MISSING) -> dict:
    """A valid body in which one field is something else, or missing."""
    changed = copy.deepcopy(BODY)
    if path:
        *parents, name = [int(part) if part.isdigit() else part for part in path.split(".")]
        at = changed
        for parent in parents:
            at = at[parent]
        if value is MISSING:
            del at[name]
        else:
            at[name] = value
    return changed


def read(path: str = "", value: object = MISSING) -> Intent:
    return intents.parse(json.dumps(body(path, value)).encode())


def problems(raw: bytes | dict) -> dict[str, str]:
    with pytest.raises(IntentRejected) as caught:
        intents.parse(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return dict(caught.value.problems)


def refused(path: str, value: object = MISSING, *, field: str | None = None) -> str:
    """The sentence about the one field that is wrong; nothing else may be said to be."""
    found = problems(body(path, value))
    expected = field or path.replace(".0.", "[0].").replace(".1.", "[1].")
    assert list(found) == [expected]
    return found[expected]


# ── What is taken ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_valid_intent_is_read_into_minor_units():
    intent = read()
    assert (intent.order_ref, intent.currency, intent.amount) == ("A-1001", "DKK", 13900)
    assert intent.expires_in is None
    assert "userAgent" not in msgspec.json.decode(intent.document)


def test_numbers_are_never_floats():
    raw = (
        json.dumps(body())
        .replace("139.0", "900719925474099.13")
        .replace('"unitPrice": 14.0', '"unitPrice": 900719925473974.13')
    )
    intent = intents.parse(raw.encode())
    assert intent.amount == 90071992547409913
    stored = msgspec.json.Decoder(float_hook=Decimal).decode(intent.document)
    assert stored["order"]["amount"]["value"] == Decimal("900719925474099.13")


def test_the_same_content_in_other_words_has_the_same_fingerprint():
    first = read()
    spaced = json.dumps(body(), indent=4, sort_keys=True).replace("139.0", "139.000")
    assert intents.parse(spaced.encode()).fingerprint == first.fingerprint
    assert read("order.amount.currency", "dkk").fingerprint == first.fingerprint
    assert read("callbacks.redirect", None).fingerprint == first.fingerprint
    assert read("order.orderLines.0.goodsType", "item").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("order.orderId", "A-1002"),
        ("order.orderLines.0.description", "Cup"),
        ("order.customer.firstName", "Bo"),
        ("callbacks.failure.value", "https://shop.example/else"),
        ("configuration.autoCapture", True),
        ("expiresIn", 60),
    ],
)
def test_other_content_has_another_fingerprint(path, value):
    assert read(path, value).fingerprint != read().fingerprint


def test_the_shoppers_browser_is_kept_and_is_not_part_of_the_content():
    intent = read("userAgent", "Mozilla/5.0 " + "x" * 600)
    assert intent.fingerprint == read().fingerprint
    assert len(msgspec.json.decode(intent.document)["userAgent"]) == 512


def test_nothing_of_the_customer_shows_when_an_intent_is_printed():
    assert "ada@example.com" not in repr(read())


def test_a_description_is_cut_where_the_vendor_cuts_it():
    stored = msgspec.json.decode(read("order.orderLines.0.description", "d" * 200).document)
    assert stored["order"]["orderLines"][0]["description"] == "d" * 50


def test_a_currency_without_decimals_takes_whole_amounts():
    changed = body("order.amount", {"value": 139, "currency": "JPY"})
    assert intents.parse(json.dumps(changed).encode()).amount == 139


@pytest.mark.parametrize(("seconds", "expected"), [(1, 1.0), (0.5 + 1, 1.5), (2_592_000, 2_592_000.0)])
def test_a_life_of_a_second_to_thirty_days_is_taken(seconds, expected):
    assert read("expiresIn", seconds).expires_in == expected


# ── Amounts and lines ─────────────────────────────────────────────────────────────────────────────────────


def test_a_third_decimal_that_is_not_zero_is_refused_in_one_sentence():
    changed = body("order.amount.value", 10.005)
    assert problems(changed) == {
        "order.amount.value": "10.005 DKK has more decimals than DKK has (2): round it to what the currency has before sending it"
    }


def test_a_third_decimal_that_is_zero_is_taken():
    assert intents.parse(json.dumps(body()).replace("139.0", "139.0000").encode()).amount == 13900


@pytest.mark.parametrize("value", [0, -1, -0.01])
def test_an_amount_that_is_not_more_than_nothing_is_refused(value):
    assert "more than 0" in refused("order.amount.value", value)


@pytest.mark.parametrize("value", ["139.00", True, [], {}])
def test_an_amount_that_is_no_number_is_refused(value):
    assert "without quotes" in refused("order.amount.value", value)


@pytest.mark.parametrize("number", ["1e30", "1e999999999", "99999999999999999999"])
def test_an_amount_that_does_not_fit_is_refused(number):
    raw = json.dumps(body()).replace("139.0", number).encode()
    assert "more than fits" in problems(raw)["order.amount.value"]


NUMBERS = {
    "order.amount.value": "order.amount.value",
    "order.orderLines.0.quantity": "order.orderLines[0].quantity",
    "order.orderLines.0.unitPrice": "order.orderLines[0].unitPrice",
    "order.orderLines.0.taxAmount": "order.orderLines[0].taxAmount",
    "expiresIn": "expiresIn",
}


@pytest.mark.parametrize(("path", "field"), NUMBERS.items())
@pytest.mark.parametrize(
    "number",
    ["1e999999999", "-1e999999999", "-1e1000000", "1e-999999999", "-1e-999999999", "1e999999999999999999"],
)
def test_a_number_whose_exponent_is_hostile_is_a_problem_at_once(path, field, number):
    raw = json.dumps(body(path, "HERE")).replace('"HERE"', number).encode()
    begun = time.process_time()
    found = problems(raw)
    assert time.process_time() - begun < 0.5
    assert field in found
    assert all(len(sentence) < 300 for sentence in found.values())


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_of_two_hundred_thousand_digits_is_a_problem_at_once(path, sign):
    for number in ("9" * 200_000, "9" * 200_000 + ".5", "0." + "3" * 200_000):
        raw = json.dumps(body(path, "HERE")).replace('"HERE"', sign + number).encode()
        begun = time.process_time()
        assert problems(raw)
        assert time.process_time() - begun < 0.5


def test_a_number_beyond_all_numbers_is_refused():
    raw = json.dumps(body()).replace("139.0", "1e9999999999999999999999").encode()
    assert list(problems(raw)) == ["body"]


def of_currency(currency: str, value: str, price: str, tax: str = "0"):
    changed = body("order.amount", {"value": "V", "currency": currency})
    changed["order"]["orderLines"] = [
        {
            "itemId": "1",
            "description": "A lamp",
            "quantity": 1,
            "unitPrice": "P",
            "taxAmount": "T",
            "goodsType": "item",
        }
    ]
    document = json.dumps(changed)
    for name, number in (("V", value), ("P", price), ("T", tax)):
        document = document.replace(f'"{name}"', number)
    return document.encode()


@pytest.mark.parametrize("currency", ["KWD", "BHD", "TND", "JOD", "OMR"])
def test_a_third_decimal_is_refused_because_the_gateway_holds_two(currency):
    wrong = problems(of_currency(currency, "1.234", "1.234"))
    assert wrong["order.amount.value"] == (
        f"1.234 {currency} has more decimals than the gateway holds (2): round it to 2 decimals before sending it"
    )
    assert "order.orderLines[0].unitPrice" in wrong
    assert list(problems(of_currency(currency, "1.23", "1.225", "0.005"))) == [
        "order.orderLines[0].unitPrice",
        "order.orderLines[0].taxAmount",
    ]


@pytest.mark.parametrize(("currency", "value"), [("CLF", "1.2345"), ("UYW", "1.2301")])
def test_a_fourth_decimal_is_refused_too(currency, value):
    assert "order.amount.value" in problems(of_currency(currency, value, value))


@pytest.mark.parametrize("currency", ["JPY", "ISK", "XOF"])
def test_decimals_of_a_currency_without_any_are_refused(currency):
    assert "has more decimals than" in problems(of_currency(currency, "139.5", "139.5"))["order.amount.value"]


@pytest.mark.parametrize(
    ("currency", "value", "sent"),
    [("KWD", "1.230", "1.23"), ("CLF", "1.2300", "1.23"), ("JPY", "139.00", "139")],
)
def test_the_session_has_the_decimals_that_the_gateway_holds(currency, value, sent):
    intent = intents.parse(of_currency(currency, value, value))
    order = intents.session_body(intent.document, checkout_id=CHECKOUT, urls=URLS)["order"]
    assert str(order["amount"]["value"]) == sent
    assert [str(line["unitPrice"]) for line in order["orderLines"]] == [sent]
    assert intents.parse(of_currency(currency, sent, sent)).fingerprint == intent.fingerprint


@pytest.mark.parametrize("currency", ["BGN", "HRK", "ANG"])
def test_an_order_in_a_withdrawn_currency_is_left_to_the_gateway(currency):
    assert intents.parse(of_currency(currency, "139.00", "139.00")).amount == 13900


@pytest.mark.parametrize("code", ["DKX", "XXX", "ZZZ", "ßab"])
def test_a_currency_that_does_not_exist_is_refused_and_hides_no_other_problem(code):
    assert "ISO 4217" in refused("order.amount.currency", code)


@pytest.mark.parametrize(("missing", "line"), [("0.02", "0.02"), ("-0.03", "-0.03")])
def test_lines_that_are_off_by_rounding_are_completed_by_a_line(missing, line):
    changed = body("order.amount.value", float(Decimal("139.00") + Decimal(missing)))
    intent = intents.parse(json.dumps(changed).encode())
    session = intents.session_body(intent.document, checkout_id=CHECKOUT, urls=URLS)
    last = session["order"]["orderLines"][-1]
    assert last == {
        "itemId": "comp-amount",
        "description": "Rounding",
        "quantity": 1,
        "unitPrice": Decimal(line),
        "taxAmount": Decimal("0.00"),
        "goodsType": "handling",
    }
    assert len(session["order"]["orderLines"]) == 3


def test_lines_that_sum_up_get_no_further_line():
    session = intents.session_body(read().document, checkout_id=CHECKOUT, urls=URLS)
    assert len(session["order"]["orderLines"]) == 2


@pytest.mark.parametrize("value", [139.04, 138.96, 1, 1000])
def test_lines_that_are_off_by_more_than_rounding_are_refused_with_the_difference(value):
    sentence = refused("order.amount.value", value, field="order.orderLines")
    assert "139.00 DKK" in sentence
    assert f"{abs(Decimal(str(value)) - 139):.2f} DKK" in sentence


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ({"quantity": 1_000_000, "unitPrice": 0}, "0.00"),
        ({"quantity": 1_000_000, "unitPrice": 0, "taxAmount": 0.10}, "0.01"),
        ({"quantity": 2, "unitPrice": 50}, "0.02"),
    ],
)
def test_what_costs_nothing_is_not_rounded(line, most):
    """A million pieces for nothing do not allow a difference of ten thousand kroner."""
    changed = body("order.orderLines", [{"itemId": "mug", "description": "Mug", **line}])
    changed["order"]["amount"]["value"] = 9999.00
    assert f"up to {most} DKK" in problems(changed)["order.orderLines"]


@pytest.mark.parametrize(
    ("once", "twice", "name"),
    [
        ('"amount": {', '"amount": {"value": 1.00, "currency": "DKK"}, "amount": {', "amount"),
        ('"value": 139.0', '"value": 1.0, "value": 139.0', "value"),
        ('"value": 139.0', '"value" \t: 1.0, "value": 139.0', "value"),
        ('"orderId":', '"order\\u0049d": "B-1", "orderId":', "orderId"),
        ('"basket": "b-7"', '"basket": "b-7", "basket": "b-8"', "basket"),
        ('"callbacks":', '"callbacks": null, "callbacks":', "callbacks"),
        ('"unitPrice": 14.0', '"unitPrice": 14.0, "unitPrice": 14.0', "unitPrice"),
    ],
)
def test_a_name_that_an_object_has_twice_is_refused(once, twice, name):
    raw = json.dumps(BODY)
    assert raw.count(once) == 1
    assert problems(raw.replace(once, twice).encode()) == {
        name: "is given more than once in one object: send each name once"
    }


def test_of_many_names_one_that_comes_twice_is_found_at_once():
    many = ", ".join(f'"n{number}": 0' for number in range(15_000))
    began = time.process_time()
    assert problems(f'{{{many}, "n14999": 0}}'.encode()) == {
        "n14999": "is given more than once in one object: send each name once"
    }
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", ['":', 'a":"b', '\\":', "::::", '"a" : "b"', '{"a":1,"a":2}'])
def test_a_text_that_looks_like_names_is_a_text(text):
    assert read("order.transactionInfo.basket", text).order_ref == "A-1001"


def test_an_order_without_lines_is_refused():
    assert "at least one" in refused("order.orderLines", [])
    assert "at least one" in refused("order.orderLines")
    assert "the most is" in refused("order.orderLines", [BODY["order"]["orderLines"][0]] * 501)


def test_a_discount_is_a_handling_line():
    lines = [
        *BODY["order"]["orderLines"],
        {"itemId": "d", "description": "Off", "quantity": 1, "unitPrice": -9},
    ]
    changed = body("order.orderLines", lines)
    changed["order"]["amount"]["value"] = 130
    assert "handling" in problems(changed)["order.orderLines[2].unitPrice"]
    lines[2]["goodsType"] = "handling"
    assert (
        intents.parse(
            json.dumps(body("order.orderLines", lines) | {}).replace("139.0", "130.0").encode()
        ).amount
        == 13000
    )


@pytest.mark.parametrize("quantity", [0, -1, 1.5, "2", True, 1_000_001, 1e300, None])
def test_a_quantity_that_is_no_number_of_pieces_is_refused(quantity):
    assert "whole number" in refused("order.orderLines.0.quantity", quantity)


@pytest.mark.parametrize("name", ["itemId", "description", "quantity", "unitPrice"])
def test_a_line_that_lacks_something_is_refused(name):
    assert refused(f"order.orderLines.0.{name}")


def test_a_line_that_is_no_line_is_refused():
    assert (
        problems(body("order.orderLines", [7]))["order.orderLines[0]"]
        == "must be an order line, not a number"
    )


# ── Texts ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order_ref", ["A/1", "A 1", "Ä1", "a" * 51, "a_b"])
def test_an_order_number_that_some_method_would_not_take_is_refused(order_ref):
    assert "1 to 50 letters" in refused("order.orderId", order_ref)


@pytest.mark.parametrize(
    "path",
    [
        "order.orderId",
        "order.customer.firstName",
        "order.customer.billingAddress.city",
        "order.orderLines.0.itemId",
        "callbacks.success.value",
        "userAgent",
    ],
)
@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\x1cb", "a\x7fb", "a\x9bb"])
def test_a_control_character_is_refused_wherever_it_stands(path, text):
    assert "control character" in refused(path, text)


@pytest.mark.parametrize(
    "path",
    [
        "order.orderId",
        "order.orderLines.0.itemId",
        "callbacks.success.value",
        "userAgent",
        "order.customer.email",
    ],
)
@pytest.mark.parametrize("text", ["a@\nb", "a@\tb", "a@\x85b"])
def test_a_line_break_in_what_identifies_is_refused(path, text):
    assert "control character" in refused(path, text)


ON_ONE_LINE = [
    "order.customer.firstName", "order.customer.lastName", "order.customer.billingAddress.street",
    "order.customer.billingAddress.city", "order.customer.billingAddress.zipCode", "order.orderLines.0.description",
]  # fmt: skip


@pytest.mark.parametrize("path", ON_ONE_LINE)
@pytest.mark.parametrize(
    "between", ["\n", "\r\n", "\t", " \t \n ", "\v", "\f", "\x85", "\u2028", "\u2029\u2029"]
)
def test_line_breaks_and_tabs_of_an_address_or_a_description_are_one_blank(path, between):
    broken = read(path, f"Havn{between}2")
    assert msgspec.json.decode(broken.document) == msgspec.json.decode(read(path, "Havn 2").document)
    assert broken.fingerprint == read(path, "Havn 2").fingerprint


def test_blanks_of_a_text_on_one_line_stay_as_they_are():
    street = msgspec.json.decode(read("order.customer.billingAddress.street", "A  1").document)
    assert street["order"]["customer"]["billingAddress"]["street"] == "A  1"


def test_a_text_of_line_breaks_alone_is_empty():
    assert "is empty" in refused("order.orderLines.0.description", "\r\n\t")
    assert read("order.customer.billingAddress.city", "\n")


@pytest.mark.parametrize("path", ON_ONE_LINE[2:])
def test_a_text_of_many_blanks_is_read_in_one_pass(path):
    begun = time.process_time()
    problems(body(path, " " * 200_000 + "\n" + " " * 50_000 + "\x1b"))
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("name", "value"), [("a\0", "b"), ("a", "b\0"), ("a" * 256, "b"), ("a", "b" * 256), ("a", 7), ("", "b")]
)
def test_an_entry_of_transaction_info_that_the_gateway_would_not_take_is_refused(name, value):
    found = problems(body("order.transactionInfo", {name: value}))
    assert len(found) == 1
    assert next(iter(found)).startswith("order.transactionInfo.")


def test_the_entry_of_ours_is_reserved_and_counts():
    assert "reserved" in refused(
        "order.transactionInfo", {"checkout": "x"}, field="order.transactionInfo.checkout"
    )
    assert "the most is 49" in refused("order.transactionInfo", {f"k{i}": "v" for i in range(50)})
    assert read("order.transactionInfo", {f"k{i}": "v" for i in range(49)})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://shop.example/", "starts with https"),
        ("javascript:alert(1)", "starts with https"),
        ("//shop.example/", "starts with https"),
        ("https://", "name a host"),
        ("https:///path", "name a host"),
        ("https://ada:secret@shop.example/", "user name or password"),
        ("https://shop.example@evil.example/", "user name or password"),
        ("https://shop.example:70000/", "port 70000"),
        ("https://shop.example:0/", "port 0"),
        ("https://shop.example/a b", "percent-encode"),
        ("https://shop.example\\@evil.example/", "user name or password"),
        ("https://sh\u00f8p.example/", "percent-encode"),
        ("HTTPS://shop.example/", "small letters"),
        ("https://shop.example/" + "a" * 2030, "the most is 2048"),
        (7, "must be a text"),
    ],
)
def test_a_page_that_no_shopper_can_be_sent_to_is_refused(url, said):
    assert said in refused("callbacks.success.value", url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "https://shop.example?x=1",
        "https://[::1]:8000/a",
        "https://a_b.example/%20#x",
    ],
)
def test_a_page_with_a_host_is_taken(url):
    assert read("callbacks.success.value", url)


@pytest.mark.parametrize(
    "url",
    [
        "myshop://checkout/done",
        "com.shop.app://done?x=1#top",
        "my-shop+beta://",
        "MyShop://done",
        "https://shop.example/done",
    ],
)
def test_after_the_payment_an_app_may_be_opened(url):
    intent = read("callbacks.redirect", url)
    page = intents.shop_pages(intent.document)["redirect"]
    assert page is not None
    assert page.startswith(url.partition("#")[0])
    assert "orderId=A-1001" in page


@pytest.mark.parametrize(
    "path",
    ["callbacks.success.value", "callbacks.failure.value", "callbacks.notification", "callbacks.formStyling"],
)
def test_a_server_is_called_back_by_http_alone(path):
    changed = body(path, "myshop://checkout/done")
    assert problems(changed) == {path: "must be a URL that starts with https:// (or http://)"}


@pytest.mark.parametrize(
    "url",
    [
        "javascript://shop.example/%0aalert(1)",
        "JavaScript://x",
        "javascript:alert(1)",
        "data://text/html,x",
        "data:text/html,x",
        "vbscript://x",
        "file:///etc/passwd",
        "FILE://host/x",
        "blob://x",
        "about://blank",
        "view-source://x",
        "ftp://shop.example/",
        "mailto://x",
        "chrome-extension://x/y",
        "1shop://done",
        "my shop://done",
        "myshop:done",
        "//shop.example",
        "shop",
    ],
)
def test_what_a_browser_runs_or_reads_from_the_device_is_no_page_of_an_app(url):
    assert "scheme of an app" in refused("callbacks.redirect", url)


@pytest.mark.parametrize("url", ["myshop://a b", "myshop://a\\b", 'myshop://"', "myshop://\u00f8"])
def test_the_address_of_an_app_holds_what_a_url_may_hold(url):
    assert refused("callbacks.redirect", url)


def test_a_function_is_no_callback_for_a_server():
    assert "browser" in refused("callbacks.success.type", "FUNCTION")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("order.customer.email", "no-address", "e-mail"),
        ("order.customer.billingAddress.country", "XX", "ISO 3166"),
        ("order.customer.billingAddress.country", "ß", "ISO 3166"),
        ("order.customer", {}, "is empty"),
        ("order.customer", None, "is null"),
        ("order.customer", "Ada", "must be an object, not a text"),
        ("configuration.paymentType", "SUBSCRIPTION", "PAYMENT"),
        ("configuration.autoCapture", "yes", "true or false"),
        ("configuration.paymentDisplayType", "in line", "capitals"),
        ("configuration.language", "dan", "two letters"),
        ("callbacks.bodyFormat", "YAML", "XML or JSON"),
        ("order.orderLines.0.goodsType", "gift", "one of item"),
        ("expiresIn", 0, "seconds"),
        ("expiresIn", 2_592_001, "seconds"),
        ("expiresIn", True, "seconds"),
        ("expiresIn", "60", "seconds"),
    ],
)
def test_a_field_that_is_wrong_is_refused_with_what_it_takes(path, value, said):
    assert said in refused(path, value)


@pytest.mark.parametrize("path", ["order.customer.billingAddress.country", "configuration.country"])
@pytest.mark.parametrize("code", ["XK", "xk", "gb"])
def test_kosovo_has_a_code_of_its_own(path, code):
    read_back = msgspec.json.decode(read(path, code).document)
    for part in path.split("."):
        read_back = read_back[part]
    assert read_back == code.upper()


@pytest.mark.parametrize(("code", "right"), [("UK", "GB"), ("uk", "GB"), ("EL", "GR"), ("XI", "GB")])
@pytest.mark.parametrize("path", ["order.customer.billingAddress.country", "configuration.country"])
def test_a_code_that_is_not_the_countrys_is_refused_with_the_right_code(path, code, right):
    assert f"send {right}" in refused(path, code)


@pytest.mark.parametrize("quantity", [0.5, 1.5, 0.001, 0])
def test_what_is_sold_by_measure_is_refused_with_a_way_to_send_it(quantity):
    assert "as quantity 1 with the price of the whole line" in refused(
        "order.orderLines.0.quantity", quantity
    )


def test_the_format_of_callbacks_may_stand_where_older_samples_have_it():
    meant = read("callbacks.bodyFormat", "JSON")
    assert read("configuration.bodyFormat", "json").fingerprint == meant.fingerprint
    both = body("callbacks.bodyFormat", "JSON")
    both["configuration"]["bodyFormat"] = "JSON"
    assert intents.parse(json.dumps(both).encode()).fingerprint == meant.fingerprint
    session = intents.session_body(
        read("configuration.bodyFormat", "JSON").document, checkout_id=CHECKOUT, urls=URLS
    )
    assert session["callbacks"]["bodyFormat"] == "JSON"
    assert "bodyFormat" not in session["configuration"]


def test_two_formats_of_callbacks_contradict_each_other():
    both = body("callbacks.bodyFormat", "XML")
    both["configuration"]["bodyFormat"] = "JSON"
    assert "callbacks.bodyFormat alone" in problems(both)["configuration.bodyFormat"]
    assert "XML or JSON" in refused("configuration.bodyFormat", "YAML")
    assert "must be a text" in refused("configuration.bodyFormat", 7)


@pytest.mark.parametrize("native", [True, False])
def test_the_native_flow_is_passed_on(native):
    session = intents.session_body(read("isNativeFlow", native).document, checkout_id=CHECKOUT, urls=URLS)
    assert session["isNativeFlow"] is native
    assert read("isNativeFlow", native).fingerprint != read().fingerprint
    assert read("isNativeFlow", None).fingerprint == read().fingerprint


def test_a_native_flow_is_yes_or_no():
    assert "true or false" in refused("isNativeFlow", "yes")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_changes_nothing(encoding):
    raw = json.dumps(body("order.customer.firstName", "S\u00f8s"), ensure_ascii=False).encode(encoding)
    assert intents.parse(raw).fingerprint == read("order.customer.firstName", "S\u00f8s").fingerprint


def test_a_customers_values_are_not_repeated_in_a_sentence():
    assert "not-an-address" not in refused("order.customer.email", "not-an-address")


# ── The whole ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    ["order", "callbacks", "configuration", "order.orderId", "order.amount", "order.amount.value", "order.amount.currency",
     "order.customer", "callbacks.success", "callbacks.failure", "callbacks.success.value", "configuration.paymentType"],
)  # fmt: skip
def test_a_missing_field_is_named(path):
    assert "is missing" in refused(path)


def test_a_misspelt_field_is_named_with_the_known_field():
    assert "did you mean redirect?" in refused(
        "callbacks.redirct", "https://shop.example/", field="callbacks.redirct"
    )
    assert "known here are" in refused("order.zzz", 1, field="order.zzz")


def test_every_problem_is_reported_at_once():
    changed = body("order.amount.value", 10.005)
    changed["order"]["orderId"] = "A/1"
    changed["callbacks"]["success"] = None
    changed["expiresIn"] = -1
    assert set(problems(changed)) == {"order.amount.value", "order.orderId", "callbacks.success", "expiresIn"}


def test_problems_have_an_end():
    changed = body("order.orderLines", [7] * 500)
    with pytest.raises(IntentRejected) as caught:
        intents.parse(json.dumps(changed).encode())
    assert len(caught.value.problems) == 50
    assert str(caught.value).endswith("(and 49 more)")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff", b'{"order":"\xff"}', b"[" * 100_000, b'{"order":"\\ud800"}', b"NaN",
     b"\xef\xbb\xbf", b"\xff\xfe{", b"\xef\xbb\xbf\xef\xbb\xbf{}", b" " * (BODY_LIMIT + 1), b"1" * 5000],
)  # fmt: skip
def test_what_is_no_intent_at_all_is_refused_as_a_whole(raw):
    assert list(problems(raw)) == ["body"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
PATHS = st.sampled_from(
    [f"order.{name}" for name in BODY["order"]]
    + ["order", "callbacks", "configuration", "order.amount.value", "order.amount.currency", "order.orderLines.0",
       "order.orderLines.0.unitPrice", "order.orderLines.1.quantity", "order.customer.billingAddress", "callbacks.success",
       "callbacks.success.value", "expiresIn", "userAgent", "order.transactionInfo.basket"]
)  # fmt: skip


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_an_intent_or_a_refusal(raw):
    with pytest.raises(IntentRejected):
        intents.parse(raw)


@given(PATHS, JSON)
def test_whatever_stands_in_a_field_is_an_intent_or_a_refusal(path, value):
    try:
        intent = read(path, value)
    except IntentRejected:
        return  # the sentences are checked above
    assert 0 < intent.amount < 2**63
    assert intents.shop_pages(intent.document)["success"]
    session = intents.session_body(intent.document, checkout_id=CHECKOUT, urls=URLS)
    msgspec.json.encode(session).decode()
    total = sum(
        orderLine["unitPrice"] * orderLine["quantity"] + orderLine["taxAmount"]
        for orderLine in session["order"]["orderLines"]
    )
    assert total == session["order"]["amount"]["value"]


# ── What it becomes ───────────────────────────────────────────────────────────────────────────────────────


def test_the_session_carries_our_links_and_our_id():
    intent = read("callbacks.formStyling", "https://shop.example/form")
    session = intents.session_body(intent.document, checkout_id=CHECKOUT, urls=URLS)
    assert session["order"]["transactionInfo"] == {"basket": "b-7", "checkout": str(CHECKOUT)}
    assert session["callbacks"] == {
        "success": {"type": "URL", "value": "https://pay.example/s"},
        "failure": {"type": "URL", "value": "https://pay.example/f"},
        "redirect": "https://pay.example/r",
        "notification": "https://pay.example/n",
        "formStyling": "https://shop.example/form",
    }
    assert session["configuration"] == {"paymentType": "PAYMENT"}
    assert set(session) == {"order", "callbacks", "configuration"}
    assert "shop.example/paid" not in repr(session)


def test_the_shops_pages_carry_the_order_number():
    assert intents.shop_pages(read().document) == {
        "success": "https://shop.example/paid?lang=da&orderId=A-1001#top",
        "failure": "https://shop.example/not-paid?orderId=A-1001",
        "redirect": None,
    }
