"""Whatever a careless call logs, no secret, card or personal data is in what is written."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from uuid import UUID, uuid4

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator import log
from orchestrator.domain.ids import uuid7
from orchestrator.store.database import Database

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
    """Set logging up for one test; return what has been written since the last call."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
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
    for identifier in ids:
        log.get("orchestrator.test").info(
            "checkout_moved", checkout=identifier, note=f"of {identifier} and {identifier},"
        )
    text = written()
    assert log.HIDDEN not in text
    assert all(text.count(str(identifier)) >= 3 for identifier in ids)


@given(st.uuids())
def test_no_id_is_taken_for_a_card_number(identifier):
    assert log.scrub(f"a {identifier} b checkout={identifier} /v1/checkouts/{identifier}/audit") == (
        f"a {identifier} b checkout={identifier} /v1/checkouts/{identifier}/audit"
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
        "checkout_moved",
        "warning",
        "orchestrator.test",
        "1",
    )
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("plain text", "error", "third.party")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", ours["timestamp"])


def test_libraries_that_log_every_request_are_quiet_and_so_is_debug(written):
    logging.getLogger("httpx").info("GET /x")
    logging.getLogger("uvicorn.access").info("GET /callbacks/x")
    log.get("orchestrator.test").debug("detail")
    assert written() == ""


@pytest.mark.parametrize("written", ["console"], indirect=True)
def test_auto_means_json_without_a_terminal(capsys, written):
    log.configure(style="auto")
    log.get("orchestrator.test").info("one_thing")
    assert json.loads(capsys.readouterr().err)["event"] == "one_thing"


@given(st.from_regex(log._PLAIN, fullmatch=True))
def test_what_is_passed_over_as_plain_has_no_shape_of_a_secret(text):
    assert all(pattern.sub(replacement, text) == text for pattern, replacement in log._SENSITIVE_TEXT)


ENCODED = {
    "firstname=Anna&lastname=Berg&x=1": ("Anna", "Berg"),
    "cardholder%20name=Anna%20Berg": ("Anna", "Berg"),
    "customer%5Bemail%5D=anna%40shop.example": ("anna",),
    "customer%255Bemail%255D%3Danna%2540shop.example": ("anna",),
    "q=4111%200000%201111%200000": ("4111",),
    "q=4111+0000+1111+0000": ("0000",),
    "q=%34111000011110000": ("1110000",),
    "mail=anna%2Bx%2540shop.example": ("anna",),
    f"t%3D{JWT.replace('.', '%2E')}": ("c2lnbmF0dXJl",),
    "redirect=https%3A%2F%2Fshop%3Apa55word%40db.example": ("pa55word",),
    '{"customer": {"name": "Anna"}, "x": 1}': ("Anna",),
    '{"billingAddress":["Street 1","Anna"],"x":1}': ("Anna",),
    "password=hush": ("hush",),
    "first_name='Anna Berg'": ("Anna", "Berg"),
    "%2525252541nna": ("nna",),
}


@pytest.mark.parametrize(("careless", "secrets"), tuple(ENCODED.items()), ids=lambda value: str(value)[:30])
def test_what_is_encoded_is_hidden_like_what_is_in_the_clear(written, careless, secrets):
    log.get("orchestrator.test").warning("something_happened", note=careless)
    text = written()
    assert not [secret for secret in secrets if secret in text]
    assert log.HIDDEN in text


@pytest.mark.parametrize(
    "text",
    [
        "100 % of 3%",
        "order=A-1&state=paid",
        "a+b",
        "%20",
        "from 10% to 20%",
        "https://shop.example/a%20b",
        "rate=5%2Fs",
    ],
)
def test_what_is_encoded_and_harmless_stays(text):
    assert log.scrub(text) == text


@given(st.text(alphabet="abc123=%&;[]{}\"' .@-_", max_size=300))
def test_scrubbing_again_changes_nothing(text):
    assert log.scrub(log.scrub(text)) == log.scrub(text)


@pytest.mark.parametrize(
    "part",
    [
        "token",
        "a",
        "token[",
        "%41",
        '"customer": {',
        "eyJ-",
        "a.",
        "a@",
        "a@b.c+",
        "a%40b",
        "eyJaaaaaaaa.",
        "Basic ",
        "://a:",
        "1 ",
    ],
)
def test_the_time_of_scrubbing_grows_with_the_text_and_not_faster(part):
    # With its square it would take the better part of an hour; the limit of the whole test bounds it.
    assert log.scrub(part * (500_000 // len(part)) + " ") is not None


def test_addresses_and_tokens_that_hang_on_each_other_are_hidden_to_the_last():
    assert log.scrub("a@b.dk+c@d.dk") == log.HIDDEN
    assert log.scrub("anna@x@shop.example") == f"anna@{log.HIDDEN}"
    token = f"eyJ{'a' * 20}.{'b' * 20}.{'c' * 20}"
    assert log.scrub(f"v1.{token} x-{token}") == f"v1.{log.HIDDEN} {log.HIDDEN}"


STEERING = ("\x1b[2JPaid: yes", "\x9b2J", "A-\u202e1002", "A\nPaid: yes", "\x7f")


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_no_line_of_the_log_can_steer_a_terminal_or_fake_another_line(written, text):
    log.get("orchestrator.test").warning("something_happened", reason=text, many=[text])
    logging.getLogger("third.party").warning("it says %s", text)
    log.get("orchestrator.test").warning("it_broke", exc_info=ValueError(text))
    printed = written()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", re.sub(r"\x1b\[[0-9;]*m", "", printed))
    assert not [line for line in printed.splitlines() if line.startswith("Paid")]


async def _refused(database_url, statement, **parameters):
    async with Database(database_url, pool_size=1) as db:
        with pytest.raises(DBAPIError) as caught:
            await db.write(text(statement), parameters)
    return caught.value


@pytest.mark.anyio
async def test_an_error_of_postgres_is_logged_with_its_state_and_message_and_without_values(
    written, shared_database_url
):
    made = [
        await _refused(shared_database_url, "SELECT CAST(CAST(:v AS text) AS uuid)", v="Anna Berg"),
        await _refused(shared_database_url, "SELECT * FROM nowhere_to_be_found"),
        await _refused(
            shared_database_url,
            "INSERT INTO merchants (name, username, password) VALUES (:v, 'a', 'b'), (:v, 'a', 'b')",
            v="Anna Berg",
        ),
        await _refused(
            shared_database_url,
            "DO $$ BEGIN PERFORM set_config('transaction_read_only', 'on', true); DELETE FROM events; END $$",
        ),
        await _refused("postgresql://u:hush@127.0.0.1:1/x", "SELECT 1"),
    ]
    facts = [log.cause(error) for error in made]
    assert [fact.get("sqlstate") for fact in facts] == ["22P02", "42P01", "23505", "25006", None]
    assert facts[0]["said"] == "invalid input syntax for type uuid"
    assert 'relation "nowhere_to_be_found" does not exist' in facts[1]["said"]
    assert "unique constraint" in facts[2]["said"]
    assert "read-only transaction" in facts[3]["said"]
    assert "127.0.0.1" in facts[4]["said"]
    for error, known in zip(made, facts, strict=True):
        log.get("orchestrator.test").warning("database_away", exc_info=error, **known)
    printed = written()
    assert "Anna" not in printed
    assert "hush" not in printed
    assert "25006" in printed


def test_an_error_of_ours_is_logged_by_its_class_alone():
    assert log.cause(ValueError("Anna")) == {"error": "ValueError"}
    assert log.cause(TimeoutError()) == {"error": "TimeoutError"}


def test_a_log_file_is_shared_and_opened_again_when_it_was_moved(written, tmp_path):
    file = tmp_path / "orchestrator.log"
    log.configure(style="auto", file=str(file))
    log.get("orchestrator.test").info("first_thing")
    file.rename(tmp_path / "orchestrator.log.1")
    log.get("orchestrator.test").info("second_thing")
    logging.getLogger().handlers[0].close()
    assert json.loads((tmp_path / "orchestrator.log.1").read_text())["event"] == "first_thing"
    assert json.loads(file.read_text())["event"] == "second_thing"
    assert written() == ""


PROCESS = """
import os, sys, threading, warnings
from orchestrator import log
log.configure(style="json")
log.own_output()
print("printed \\x1b[2J by a library")
print("to stderr", file=sys.stderr)
os.write(sys.__stdout__.fileno(), b"\\nworker: Warm shutdown (MainProcess)\\n")
warnings.warn("deprecated")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
log.get("orchestrator.test").info("one_thing")
raise ValueError("the end")
"""


def test_whatever_a_process_writes_is_json_where_the_log_is():
    ended = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    told = {(line["event"], line.get("line")) for line in lines}
    assert {
        ("printed", "printed \x1b[2J by a library"),
        ("printed", "to stderr"),
        ("printed", "worker: Warm shutdown (MainProcess)"),
        ("one_thing", None),
    } <= told
    assert any("deprecated" in line["event"] for line in lines)
    assert [line["level"] for line in lines if line["event"] in {"thread_broke", "process_broke"}] == [
        "critical"
    ] * 2
    assert all("ZeroDivisionError" in line["exception"] for line in lines if line["event"] == "thread_broke")


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_plain_records_are_lines_with_level_logger_and_their_own_time_or_now(written):
    then = "2026-01-02T03:04:05.678901Z"
    log.write_plain("orchestrator.test", [{"event": "first", "timestamp": then}, {"event": "second", "n": 1}])
    first, second = (json.loads(line) for line in written().splitlines())
    assert first == {"event": "first", "timestamp": then, "level": "info", "logger": "orchestrator.test"}
    assert (second["event"], second["n"], second["level"]) == ("second", 1, "info")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", second["timestamp"])
