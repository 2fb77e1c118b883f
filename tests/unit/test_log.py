"""The test that looks: whatever a careless call logs, no secret, card or person is in what is written."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from uuid import UUID, uuid4

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import log
from orchestrator.models import uuid7

JWT = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJzaG9wIiwiZXhwIjoxfQ.c2lnbmF0dXJlLWJ5dGVz"
SIGNED = "c2lnbmVkLXBhcnQtb2YtdGhlLXVybA.x7Y_z-9"
CALLBACK = f"http://127.0.0.1:8000/callbacks/success/0190a5a0-0000-7000-8000-000000000001/{SIGNED}"
CARDS = ("4111000011110000", "4111 0000 1111 0000", "4111-0000-1111-0000", "378282246310005")

SHAPES = {
    JWT: JWT,
    f"Authorization: Bearer {JWT}": JWT,
    "Authorization: Basic c2hvcDpzYW5kYm94IHBhc3N3b3Jk": "c2hvcDpzYW5kYm94",
    "bearer opaque-token-0123456789": "opaque-token",
    CALLBACK: SIGNED,
    f'posted to "{CALLBACK}?checksum=1"': SIGNED,
    "postgresql://shop:pa55word@db.example.com/x": "pa55word",
    "redis://:pa55word@127.0.0.1:6379/0": "pa55word",
    "amqp://shop:pa55@word@mq.example.com//": "word",
    **{f"paid with {card} today": card for card in CARDS},
    **{f"number={card}": card for card in CARDS},
    "cardholder anna.berg+1@shop.example asked": "anna.berg",
    "customer=anna%40shop.example&x=1": "anna",
}


@pytest.fixture(params=["json", "console"])
def written(request, monkeypatch):
    """Set logging up for one test; return what has been written since one last asked."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "uvicorn.access", "kombu")}
    log.configure(style=request.param, level="info")
    structlog.contextvars.clear_contextvars()

    def read():
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text

    yield read
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


@pytest.mark.parametrize(("careless", "secret"), tuple(SHAPES.items()), ids=lambda value: value[:30])
def test_no_shape_of_a_secret_is_written_wherever_it_stands(written, careless, secret):
    log.get("orchestrator.test").info(
        "something_happened", note=careless, nested={"a": [{"b": (careless,)}]}, number=1
    )
    logging.getLogger("third.party").warning("it says %s", careless)
    logging.getLogger("third.party").warning("with extras", extra={"note": careless})
    text = written()
    assert secret not in text
    assert text.count(log.HIDDEN) >= 4
    assert text.count("something_happened") == 1


@pytest.mark.parametrize(
    "key",
    """password gateway_password secret secret_keys token clientToken authorization Authorization signature AltaPay-Signature
    checksum cookie Set-Cookie card cardNumber pan cvc cvv email emailAddress firstName last_name customer billingAddress street
    zipCode phone body xml""".split(),
)
def test_no_value_under_a_telling_name_is_written(written, key):
    log.get("orchestrator.test").warning("something_happened", **{key: "plain", "other": {key: ["plain"]}})
    text = written()
    assert "plain" not in text
    assert text.count(log.HIDDEN) == 2


def test_an_exception_with_a_secret_in_its_message_is_written_without_it(written):
    def fail():
        raise ValueError(f"could not open postgresql://shop:pa55word@db.example.com with {JWT}")

    try:
        fail()
    except ValueError:
        log.get("orchestrator.test").exception("step_broke", checkout="1")
        logging.getLogger("third.party").exception("it broke")
    text = written()
    assert text.count("ValueError: could not open") == 2
    assert "pa55word" not in text
    assert JWT not in text


@pytest.mark.parametrize("make", [uuid4, uuid7, lambda: UUID(int=0x01234567_8901_7234_8567_890123456789)])
def test_ids_survive(written, make):
    ids = [make() for _ in range(50)]
    log.bind(correlation_id=str(ids[0]))
    for one in ids:
        log.get("orchestrator.test").info("checkout_moved", checkout=one, note=f"of {one} and {one},")
    text = written()
    assert log.HIDDEN not in text
    assert all(text.count(str(one)) >= 3 for one in ids)


@given(st.uuids())
def test_no_id_looks_like_a_card(one):
    assert log.scrub(f"a {one} b checkout={one} /v1/checkouts/{one}/audit") == (
        f"a {one} b checkout={one} /v1/checkouts/{one}/audit"
    )


def test_bytes_and_numbers_as_long_as_a_card_are_not_written(written):
    log.get("orchestrator.test").info("something_happened", raw=b"cardholder Anna", number=4111000011110000)
    text = written()
    assert "Anna" not in text
    assert "4111000011110000" not in text


def test_amounts_times_and_counts_survive(written):
    log.get("orchestrator.test").info("checkout_moved", amount=13900, late=False, seconds=0.25, none=None)
    text = written()
    assert log.HIDDEN not in text
    assert "13900" in text
    assert "0.25" in text


def test_what_is_bound_stands_on_every_line_of_its_task(written):
    log.bind(correlation_id="c-42")
    log.get("orchestrator.test").info("one_thing")
    logging.getLogger("third.party").warning("another thing")
    lines = [line for line in written().splitlines() if line]
    assert len(lines) == 2
    assert all("c-42" in line for line in lines)


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_half_a_surrogate_pair_loses_no_line(written):
    log.get("orchestrator.test").warning("one_thing", reason="half a pair: \ud83d")
    assert json.loads(written())["reason"] == "half a pair: \ud83d"


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_json_lines_are_json_with_level_logger_and_time(written):
    log.get("orchestrator.test").warning("checkout_moved", checkout="1")
    logging.getLogger("third.party").error("plain text")
    ours, theirs = (json.loads(line) for line in written().splitlines())
    assert (ours["event"], ours["level"], ours["logger"], ours["checkout"]) == (
        "checkout_moved", "warning", "orchestrator.test", "1",
    )  # fmt: skip
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("plain text", "error", "third.party")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", ours["timestamp"])


def test_libraries_that_log_every_request_are_quiet_and_so_is_debug(written):
    logging.getLogger("httpx").info("GET /x")
    logging.getLogger("uvicorn.access").info("GET /callbacks/x")
    log.get("orchestrator.test").debug("detail")
    assert written() == ""


@pytest.mark.parametrize("written", ["console"], indirect=True)
def test_auto_means_json_where_nobody_watches(capsys, written):
    log.configure(style="auto")
    log.get("orchestrator.test").info("one_thing")
    assert json.loads(capsys.readouterr().err)["event"] == "one_thing"


@given(st.from_regex(log._PLAIN, fullmatch=True))
def test_what_is_passed_over_as_plain_has_no_shape_of_a_secret(text):
    assert all(pattern.sub(replacement, text) == text for pattern, replacement in log._SENSITIVE_TEXT)
