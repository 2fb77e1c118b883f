"""`orchestrator merchants`: accounts, secrets, policies and addresses, without a secret on the command line
or on the screen.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from orchestrator import callback_urls
from orchestrator.crypto import Encryptor
from orchestrator.store.database import Database
from orchestrator.store.merchant_fields import Policies
from orchestrator.store.merchants import Merchants
from tests.conftest import SECRET_KEY, make_settings
from tests.support.command import orchestrator

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
        orchestrator("merchants", "password", "shop2", "--password-stdin", given="hush-1\n", **known),
        orchestrator("merchants", "secrets", "shop2", "--secrets-stdin", given="hush-2\nhush-3\n", **known),
        orchestrator("merchants", "list", **known),
    ]

    assert [command.returncode for command in ended] == [0, 0, 0]
    assert "2 callback secrets" in ended[1].stdout
    assert not [command for command in ended if "hush" in command.stdout + command.stderr]
    merchant = await stored(database_url)
    assert (merchant.account.password, merchant.callback_secrets) == ("hush-1", ("hush-2", "hush-3"))
    removed = orchestrator("merchants", "secrets", "shop2", "--none", **known)
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
        (("password", "shop3", "--password-stdin"), "no merchant shop3"),
        (("secrets", "shop3", "--none"), "no merchant shop3"),
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
