"""`orchestrator merchants`: accounts, secrets, policies and addresses, without a secret on the command line
or on the screen.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from orchestrator import callback_urls
from orchestrator.crypto import Encryptor
from orchestrator.devkit.sandbox import SandboxConfig, create_app
from orchestrator.store.database import Database
from orchestrator.store.merchant_fields import Policies
from orchestrator.store.merchants import Merchants
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.command import ROOT, orchestrator
from tests.support.parties import serving

pytestmark = pytest.mark.anyio

ADD = ("merchants", "add", "shop2", "--gateway-url", "https://two.example", "--username", "api")


@pytest.fixture
def known(database_url):
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEYS": f'["{SECRET_KEY}"]',
        "GATEWAY_URL": "https://gateway.example",
        "PUBLIC_URL": "https://pay.example",
    }


async def stored(database_url, name="shop2"):
    async with Database(database_url, pool_size=1) as db:
        return await Merchants(db, Encryptor(make_settings().secret_keys), make_settings()).named(name)


async def test_policies_are_changed_and_listed(database_url, known):
    orchestrator(*ADD, given="a password\n\n", **known)
    changed = orchestrator(
        "merchants", "set", "shop2", "late=keep", "unknown-order=return", "lookups_per_minute=30", **known
    )
    listed = orchestrator("merchants", "list", **known).stdout

    assert (changed.returncode, changed.stderr) == (0, "")
    assert (await stored(database_url)).policies == Policies(
        late="keep", unknown_order="return", lookups_per_minute=30
    )
    [line] = [line for line in listed.splitlines() if "shop2" in line]
    assert (
        "late=keep surplus=ask unknown_order=return capture=manual surcharge=ask lookups_per_minute=30"
        in line
    )


async def test_password_and_secrets_are_read_from_standard_input_and_shown_nowhere(database_url, known):
    orchestrator(*ADD, given="a password\n\n", **known)
    ended = [
        orchestrator("merchants", "password", "shop2", "--password-from", "-", given="hush-1\n", **known),
        orchestrator("merchants", "secrets", "shop2", "--secrets-stdin", given="hush-2\nhush-3\n", **known),
        orchestrator("merchants", "list", **known),
    ]

    assert [command.returncode for command in ended] == [0, 0, 0]
    assert "2 callback secrets" in ended[1].stdout
    assert not [command for command in ended if "hush" in command.stdout + command.stderr]
    merchant = await stored(database_url)
    assert (merchant.account.password, merchant.callback_secrets) == ("hush-1", ("hush-2", "hush-3"))
    removed = orchestrator("merchants", "secrets", "shop2", "--none", "--yes", **known)
    assert "0 callback secrets" in removed.stdout
    assert (await stored(database_url)).callback_secrets == ()


def test_the_address_for_default_notifications_is_printed_alone(known):
    ended = orchestrator("merchants", "url", "default", **known)

    assert (ended.returncode, ended.stderr) == (0, "")
    printed = ended.stdout.removesuffix("\n")
    assert printed.startswith("https://pay.example/callbacks/merchant/default/")
    *_, name, signed = urlsplit(printed).path.split("/")
    assert callback_urls.open_merchant_link(Encryptor(make_settings().secret_keys), name, signed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "default", "late"), "'late' must be a policy and its value, as in late=keep"),
        (("set", "default", "late=never"), "late must be ask or keep or return, not 'never'"),
        (("set", "default", "dance=tango"), "there is no policy 'dance'"),
        (("set", "default", "late=keep", "lookups_per_minute=0"), "from 1 to 100000"),
        (("set", "shop3", "late=keep"), "no merchant shop3"),
        (("password", "shop3", "--password-from", "-"), "no merchant shop3"),
        (("secrets", "shop3", "--none", "--yes"), "no merchant shop3"),
        (("url", "shop3"), "no merchant shop3"),
        (("add", "shop2", "--gateway-url", "https://u:hush@g.example", "--username", "u"), "--gateway-url must be a URL without"),
        (("add", "shop2", "--gateway-url", "https://g.example/?a=hush", "--username", "u"), "--gateway-url must be a URL without"),
        (
            ("add", "shop2", "--gateway-url", "https://g.example", "--merchant-api-url", "x", "--username", "u"),
            "--merchant-api-url must be a URL that starts with",
        ),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_one_sentence_and_changes_nothing(database_url, known, arguments, words):
    ended = orchestrator("merchants", *arguments, given="x\n", **known)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert "hush" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    async with Database(database_url, pool_size=1) as db:
        rows = await db.read(text("SELECT name, policies, password, callback_secrets FROM merchants"))
    assert [tuple(row) for row in rows] == [("default", {}, None, None)]


# ── The account, the secrets, and who changed them ────────────────────────────────────────────────────────


async def test_a_merchant_is_shown_as_text_and_as_json_without_a_secret(database_url, known):
    orchestrator(*ADD, given="hush-1\nhush-secret-2\n", **known)
    shown = orchestrator("merchants", "show", "shop2", **known)
    document = json.loads(orchestrator("merchants", "show", "shop2", "--json", **known).stdout)
    listed = json.loads(orchestrator("merchants", "list", "--json", **known).stdout)

    assert "state               enabled" in shown.stdout
    assert "https://two.example" in shown.stdout
    assert [merchant["name"] for merchant in listed] == ["default", "shop2"]
    assert document == listed[1]
    assert (document["username"], document["callback_secrets"], document["changes"]) == ("api", 1, 1)
    assert "hush" not in shown.stdout + json.dumps(listed)


async def test_secrets_are_read_from_a_file_and_from_the_environment(
    database_url, known, tmp_path, monkeypatch
):
    (tmp_path / "password").write_text("hush-1\n")
    monkeypatch.setenv("SHOP2_SECRET", "hush-secret-2")
    sources = ("--password-from", tmp_path / "password", "--secret-from", "env:SHOP2_SECRET")
    added = orchestrator(*ADD, *sources, **known)
    assert (added.returncode, added.stderr) == (0, "")
    merchant = await stored(database_url)
    assert (merchant.account.password, merchant.callback_secrets) == ("hush-1", ("hush-secret-2",))
    changed = orchestrator(
        "merchants", "password", "shop2", "--password-from", "-", given="hush-3\n", **known
    )
    assert changed.returncode == 0
    assert (await stored(database_url)).account.password == "hush-3"
    for source, words in (
        ("env:NOWHERE", "NOWHERE is not set"),
        (str(tmp_path / "nothing"), "cannot be read"),
    ):
        wrong = orchestrator("merchants", "password", "shop2", "--password-from", source, **known)
        assert (wrong.returncode, words in wrong.stderr) == (2, True), wrong.stderr


async def test_another_account_asks_for_the_password_again(database_url, known):
    orchestrator(*ADD, given="a password\n\n", **known)
    moved = orchestrator(
        "merchants",
        "set",
        "shop2",
        "late=keep",
        "--gateway-url",
        "https://three.example",
        given="another\n",
        **known,
    )
    assert (moved.returncode, moved.stderr) == (0, "")
    merchant = await stored(database_url)
    assert (merchant.account.url, merchant.account.password) == ("https://three.example", "another")
    assert merchant.policies.late == "keep"
    nothing = orchestrator("merchants", "set", "shop2", **known)
    assert (nothing.returncode, "name what is to be changed" in nothing.stderr) == (2, True)
    unasked = orchestrator("merchants", "set", "shop2", "--username", "api-2", **known)
    assert unasked.returncode == 2
    assert (await stored(database_url)).account.username == "api"


async def test_a_secret_is_rotated_with_an_overlap_printed_once_and_recorded(database_url, known):
    orchestrator(*ADD, given="a password\nhush-secret-1\n", **known)
    made = orchestrator("merchants", "rotate", "shop2", "--make", "--overlap", "2h", **known)
    assert made.returncode == 0
    (secret,) = made.stdout.split()
    assert "those before it end at" in made.stderr
    assert (await stored(database_url)).callback_secrets == (secret, "hush-secret-1")
    given = orchestrator(
        "merchants", "rotate", "shop2", "--secret-from", "-", "--at-once", given="hush-secret-2\n", **known
    )
    assert (given.returncode, "hush" in given.stdout + given.stderr) == (0, False)
    # `--at-once` ends the secret that was current; the one before it keeps its own end.
    assert (await stored(database_url)).callback_secrets == ("hush-secret-2", "hush-secret-1")

    listed = json.loads(orchestrator("merchants", "history", "shop2", "--json", **known).stdout)
    assert [entry["action"] for entry in listed] == [
        "callback_secret:rotated",
        "callback_secret:rotated",
        "merchant:added",
    ]
    assert {entry["actor"] for entry in listed} == {"operator:command-line"}
    assert "merchant:added" in orchestrator("merchants", "history", "shop2", **known).stdout
    assert orchestrator("audit", "verify", **known).returncode == 0


def test_a_merchants_gateway_calls_are_paused_and_resumed(known):
    orchestrator(*ADD, given="a password\n\n", **known)
    paused = orchestrator("merchants", "pause", "shop2", "--as", "anna", **known)
    assert (paused.returncode, paused.stdout) == (
        0,
        "Merchant shop2 is paused; within ten seconds everywhere.\n",
    )
    assert "paused since" in orchestrator("merchants", "show", "shop2", **known).stdout
    assert "enabled, paused" in orchestrator("merchants", "list", **known).stdout
    assert orchestrator("merchants", "resume", "shop2", **known).returncode == 0
    assert "paused" not in orchestrator("merchants", "list", **known).stdout
    history = json.loads(orchestrator("merchants", "history", "shop2", "--json", **known).stdout)
    assert ("merchant:paused", "operator:command-line/anna") in [
        (entry["action"], entry["actor"]) for entry in history
    ]
    unknown = orchestrator("merchants", "pause", "no-such", **known)
    assert (unknown.returncode, "no-such" in unknown.stderr) == (2, True)


def test_callback_secrets_are_ended_after_a_question_alone(known):
    orchestrator(*ADD, given="a password\nhush-secret-1\n", **known)
    asked = orchestrator("merchants", "secrets", "shop2", "--none", given="y\n", **known)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "End all callback secrets of merchant shop2" in asked.stderr
    assert "so say --yes" in asked.stderr
    kept = json.loads(orchestrator("merchants", "show", "shop2", "--json", **known).stdout)
    assert kept["callback_secrets"] == 1
    ended = orchestrator("merchants", "secrets", "shop2", "--none", "--yes", "--json", **known)
    assert (ended.returncode, json.loads(ended.stdout)["callback_secrets"]) == (0, 0)


async def test_no_orders_are_imported_for_a_disabled_merchant(database_url, known):
    orchestrator(*ADD, given="a password\n\n", **known)
    orchestrator("merchants", "disable", "shop2", **known)
    order = (ROOT / "docs/intent.json").read_text().replace("\n", " ")
    given = ("checkouts", "import", "-", "--merchant", "shop2", "--format", "ndjson")
    refused = orchestrator(*given, given=order, **known)
    assert (refused.returncode, "is disabled" in refused.stderr) == (2, True), refused.stderr
    orchestrator("merchants", "enable", "shop2", **known)
    taken = orchestrator(*given, given=order, **known)
    assert taken.returncode == 0, taken.stderr


def test_credentials_are_checked_and_the_exit_status_says_whether_they_work(known):
    config = SandboxConfig(username="api", password="right")
    with serving(create_app(config)) as gateway:
        given = known | {"GATEWAY_URL": gateway}
        add = ("merchants", "add", "shop2", "--gateway-url", gateway, "--username", "api")
        assert orchestrator(*add, given="right\n\n", **given).returncode == 0
        accepted = orchestrator("merchants", "check", "shop2", **given)
        assert (accepted.returncode, "are accepted by" in accepted.stdout) == (0, True)
        orchestrator("merchants", "password", "shop2", "--password-from", "-", given="wrong\n", **given)
        refused = orchestrator("merchants", "check", "shop2", "--json", **given)
        assert (refused.returncode, json.loads(refused.stdout)["result"]) == (1, "refused")
    away = orchestrator("merchants", "check", "shop2", **given)
    assert (away.returncode, "is unavailable at" in away.stdout) == (1, True)


def test_a_token_of_the_operator_needs_no_merchant_and_a_merchants_gets_no_scope_of_the_operator(known):
    known |= {"JWT_SECRETS": '["a secret that is long enough for HS256"]'}
    made = orchestrator("token", "issue", "--operator", "--scope", "merchants:write", **known)
    assert (made.returncode, made.stdout.count(".")) == (0, 2)
    for arguments, words in (
        (("--scope", "ops"), "either --merchant NAME or --operator"),
        (("--operator", "--merchant", "default", "--scope", "ops"), "either --merchant NAME or --operator"),
        (("--merchant", "default", "--scope", "merchants:write"), "a token of a merchant must be"),
        (("--operator", "--scope", "money:write"), "a token of the operator must be"),
    ):
        wrong = orchestrator("token", "issue", *arguments, **known)
        assert (wrong.returncode, words in wrong.stderr) == (2, True), wrong.stderr


# ── Secret keys ───────────────────────────────────────────────────────────────────────────────────────────


async def test_keys_are_made_counted_and_rotated(database_url, known):
    orchestrator(*ADD, given="a password\nhush-secret-1\n", **known | {"SECRET_KEYS": f'["{OLDER_KEY}"]'})
    made = orchestrator("secrets", "new-key")
    assert len(base64.b64decode(made.stdout)) == 32

    both = known | {"SECRET_KEYS": f'["{SECRET_KEY}", "{OLDER_KEY}"]'}
    lacking = orchestrator("secrets", "status", **known)
    assert (lacking.returncode, "missing" in lacking.stdout) == (1, True)
    before = json.loads(orchestrator("secrets", "status", "--json", **both).stdout)
    assert {(row["kind"], row["role"]) for row in before} == {
        ("merchant passwords", "older"),
        ("callback secrets", "older"),
    }
    rotated = orchestrator("secrets", "rotate", **both)
    assert (rotated.returncode, "2 of 2 values" in rotated.stdout) == (0, True), rotated.stdout
    again = json.loads(orchestrator("secrets", "rotate", "--json", **both).stdout)
    assert (again["read"], again["encrypted"], again["failed"]) == (2, 0, 0)
    assert orchestrator("secrets", "status", **known).returncode == 0
    assert (await stored(database_url)).account.password == "a password"
    alone = orchestrator("secrets", "rotate", **known | {"SECRET_KEYS": f'["{OLDER_KEY}"]'})
    assert (alone.returncode, "2 values do not open" in alone.stderr) == (1, True)
