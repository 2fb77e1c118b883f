"""Merchants: their accounts, what is encrypted in the row, and how soon a change is seen."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from orchestrator.crypto import Encryptor
from orchestrator.store.database import Database, DatabaseAway, is_away
from orchestrator.store.merchant_accounts import POLICIES_PURPOSE, policies_text
from orchestrator.store.merchant_fields import (
    GatewayNotAllowed,
    MerchantRejected,
    Policies,
    PolicyRejected,
    UnknownMerchant,
)
from orchestrator.store.merchants import Merchants
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.factories import lost_connection

pytestmark = pytest.mark.anyio

SHOP = {
    "gateway_url": "https://gateway.example.com", "merchant_api_url": None, "username": "their user",
    "password": "their hidden password", "callback_secrets": ("their hidden secret", "an older secret"),
}  # fmt: skip


@pytest.fixture(name="merchants")
async def _merchants(core):
    return Merchants(core.db, core.encryptor, make_settings(gateway_secrets=("ours-1",)))


async def test_the_default_merchant_is_what_the_settings_say(merchants):
    default = await merchants.named("default")
    account = default.account
    assert (default.id, default.disabled, default.callback_secrets) == (1, False, ("ours-1",))
    assert (account.username, account.password) == ("shop", "sandbox password")
    assert await merchants.get(1) == default


async def test_an_added_merchant_has_its_own_account_and_secrets(core, merchants):
    assert await merchants.add("second", **SHOP)
    added = await merchants.named("second")
    assert (added.account.username, added.account.password) == ("their user", "their hidden password")
    assert added.callback_secrets == ("their hidden secret", "an older secret")
    assert [merchant.name for merchant in await merchants.everyone()] == ["default", "second"]
    fresh = Merchants(core.db, core.encryptor, make_settings())
    assert await fresh.get(added.id) == added


async def test_a_merchant_with_its_own_gateway_has_its_merchant_api_there_too(core):
    merchants = Merchants(core.db, core.encryptor, make_settings(merchant_api_url="https://ours.example.com"))
    await merchants.add("second", **SHOP)
    await merchants.add("third", **{**SHOP, "merchant_api_url": "https://theirs.example.com"})
    names = ("default", "second", "third")
    assert [(await merchants.named(name)).account.merchant_api_url for name in names] == [
        "https://ours.example.com",
        "https://gateway.example.com",
        "https://theirs.example.com",
    ]


async def test_a_taken_name_changes_nothing(merchants):
    assert await merchants.add("second", **SHOP)
    assert not await merchants.add("second", **{**SHOP, "username": "a thief"})
    assert (await merchants.named("second")).account.username == "their user"


async def test_secrets_are_neither_readable_in_the_row_nor_printed(core, merchants):
    await merchants.add("second", **SHOP)
    (row,) = await core.all("SELECT merchants::text FROM merchants WHERE name = 'second'")
    told = repr(await merchants.named("second")) + repr((await merchants.named("second")).account)
    for hidden in ("their hidden password", "their hidden secret", "an older secret"):
        assert hidden not in row
        assert hidden.encode().hex() not in row
        assert hidden not in told


async def test_a_password_moved_to_another_merchants_row_does_not_open(core, merchants):
    await merchants.add("second", **SHOP)
    await merchants.add("third", **SHOP)
    await core.do(
        "UPDATE merchants SET password = (SELECT password FROM merchants WHERE name = 'second') WHERE name = 'third'"
    )
    read = Merchants(core.db, core.encryptor, make_settings())
    assert await read.named("third") is None
    assert (await read.named("second")).account.password == "their hidden password"


@pytest.mark.parametrize(
    "change",
    [
        "gateway_url = 'https://thief.example.com'",
        "merchant_api_url = 'https://thief.example.com'",
        "gateway_url = NULL",
        "username = 'another'",
        "username = NULL",
        "password = NULL",
        "password = NULL, gateway_url = 'https://thief.example.com'",
        "password = NULL, gateway_url = NULL",
    ],
)
async def test_a_password_goes_nowhere_but_where_it_was_given_for(core, merchants, change):
    await merchants.add("second", **SHOP)
    await core.do(f"UPDATE merchants SET {change} WHERE name = 'second'")
    with capture_logs() as lines:
        read = Merchants(core.db, core.encryptor, make_settings())
        assert await read.named("second") is None
        assert await read.named("default")
    assert [line["merchant"] for line in lines if line["event"] == "merchant_unreadable"] == ["second"]


@pytest.mark.parametrize(
    "change",
    [
        "gateway_url = 'https://thief.example.com'",
        "merchant_api_url = 'https://thief.example.com'",
        "username = 'another'",
    ],
)
async def test_the_password_of_the_settings_goes_only_where_the_settings_say(core, change):
    await core.do(f"UPDATE merchants SET {change} WHERE name = 'default'")
    try:
        assert await Merchants(core.db, core.encryptor, make_settings()).named("default") is None
    finally:
        await core.do("UPDATE merchants SET gateway_url = NULL, merchant_api_url = NULL, username = NULL")


async def test_a_changed_password_is_for_the_same_gateway(core, merchants):
    await merchants.add("second", **SHOP)
    assert await merchants.set_password("second", "another")
    assert (await merchants.named("second")).account.password == "another"
    await core.do("UPDATE merchants SET gateway_url = 'https://thief.example.com' WHERE name = 'second'")
    assert await Merchants(core.db, core.encryptor, make_settings()).named("second") is None


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (["gateway.example.com"], "https://gateway.example.com", True),
        (["GATEWAY.example.com."], "https://gateway.EXAMPLE.com:8443/base", True),
        (["*.example.com"], "https://gateway.example.com", True),
        (["*.example.com"], "https://example.com", False),
        (["*.example.com"], "https://gateway.example.com.thief.example", False),
        (["*.example.com"], "https://thiefexample.com", False),
        (["gateway.example.com"], "https://thief.example", False),
        (["127.0.0.1", "[::1]"], "http://[::1]:9", True),
    ],
)
async def test_credentials_are_sent_to_allowed_hosts_alone(core, hosts, url, allowed):
    free = Merchants(core.db, core.encryptor, make_settings())
    await free.add("second", **{**SHOP, "gateway_url": url})
    # A private host is taken only where the installation's own gateway is private.
    own = "http://127.0.0.1:9" if "127.0.0.1" in hosts else None
    settings = make_settings(gateway_allowed_hosts=hosts, gateway_url=own)
    bound = Merchants(core.db, core.encryptor, settings)
    assert (await bound.named("second") is not None) is allowed
    for shop in ({**SHOP, "gateway_url": url}, {**SHOP, "gateway_url": url, "merchant_api_url": url}):
        if allowed:
            assert not await bound.add("second", **shop)
        else:
            with pytest.raises(GatewayNotAllowed, match="ORCHESTRATOR_GATEWAY_ALLOWED_HOSTS"):
                await bound.add("third", **shop)


async def test_rotated_keys_still_open_what_was_sealed_before(core, merchants):
    await merchants.add("second", **SHOP)
    rotated = Encryptor(make_settings(secret_keys=(OLDER_KEY, SECRET_KEY)).secret_keys)
    read = Merchants(core.db, rotated, make_settings())
    assert (await read.named("second")).account.password == "their hidden password"


async def test_an_unknown_merchant_is_an_error_by_id_and_nothing_by_name(merchants):
    with pytest.raises(UnknownMerchant, match="there is no merchant 77 that can be used") as error:
        await merchants.get(77)
    assert error.value.merchant == 77
    assert await merchants.named("unknown") is None


async def test_a_disabled_merchant_is_shown_as_disabled_until_it_is_enabled(merchants):
    await merchants.add("second", **SHOP)
    assert await merchants.disable("second", disabled=True)
    assert (await merchants.named("second")).disabled
    assert await merchants.disable("second", disabled=False)
    assert not (await merchants.named("second")).disabled
    assert not await merchants.disable("unknown", disabled=True)


async def test_what_another_process_added_is_seen_when_it_is_asked_for(core, merchants):
    assert await merchants.named("default")
    assert await Merchants(core.db, core.encryptor, make_settings()).add("second", **SHOP)
    async with asyncio.timeout(5):
        while await merchants.named("second") is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.1)


async def test_known_merchants_are_not_read_again_each_time(core, merchants):
    await merchants.get(1)
    await core.do("UPDATE merchants SET disabled_at = clock() WHERE name = 'default'")
    try:
        assert not (await merchants.get(1)).disabled
        assert (await Merchants(core.db, core.encryptor, make_settings()).get(1)).disabled
    finally:
        await core.do("UPDATE merchants SET disabled_at = NULL")


async def test_a_merchant_whose_secrets_no_key_opens_takes_no_other_along(core, merchants):
    await merchants.add("second", **SHOP)
    foreign = Merchants(
        core.db, Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys), make_settings()
    )
    assert await foreign.named("second") is None
    assert (await foreign.get(1)).name == "default"


class Counting(Database):
    """Counts what is read; away while `away` says so."""

    reads = 0
    away = False

    async def read(self, statement, parameters=None):
        self.reads += 1
        await asyncio.sleep(0.05)
        if self.away:
            raise lost_connection()
        return await super().read(statement, parameters)


@pytest.fixture(name="counting")
async def _counting(core):
    async with Counting(core.url, pool_size=2) as db:
        yield db


def aged(merchants: Merchants, *, seconds: float) -> None:
    merchants._read_at -= seconds
    merchants._failed_at -= seconds


async def test_however_many_ask_at_once_it_is_read_once(core, counting):
    merchants = Merchants(counting, core.encryptor, make_settings())
    for _ in range(2):
        found = await asyncio.gather(*(merchants.get(1) for _ in range(1600)))
        assert {merchant.name for merchant in found} == {"default"}
        aged(merchants, seconds=31)
    assert counting.reads == 2


async def test_while_postgres_is_away_known_merchants_are_served_and_none_is_reported_unknown(core, counting):
    merchants = Merchants(counting, core.encryptor, make_settings())
    known = await merchants.get(1)
    counting.away = True
    aged(merchants, seconds=31)
    with capture_logs() as lines:
        assert set(await asyncio.gather(*(merchants.get(1) for _ in range(100)))) == {known}
    assert [line["event"] for line in lines] == ["merchants_not_read"]
    assert counting.reads == 2
    fates = await asyncio.gather(*(merchants.get(77) for _ in range(10)), return_exceptions=True)
    assert {type(fate) for fate in fates} == {DatabaseAway}
    assert counting.reads == 2
    aged(merchants, seconds=2)
    with pytest.raises(OperationalError):
        await merchants.named("unknown")
    counting.away = False
    aged(merchants, seconds=2)
    assert await merchants.named("unknown") is None


async def test_before_anything_was_read_an_absent_postgres_is_an_error(core, counting):
    counting.away = True
    merchants = Merchants(counting, core.encryptor, make_settings())
    fates = await asyncio.gather(*(merchants.get(1) for _ in range(50)), return_exceptions=True)
    assert {type(fate) for fate in fates} == {OperationalError, DatabaseAway}
    assert all(is_away(fate) for fate in fates)
    assert counting.reads == 1


async def test_a_known_merchant_is_returned_without_a_query_until_it_is_old(core, counting):
    merchants = Merchants(counting, core.encryptor, make_settings())
    assert merchants.known(1) is None
    default = await merchants.get(1)
    counting.away = True
    assert merchants.known(1) == default
    assert merchants.known(77) is None
    aged(merchants, seconds=61)
    assert merchants.known(1) is None
    assert counting.reads == 1


async def test_a_merchant_whose_secrets_cannot_be_read_is_not_known(core, merchants):
    await merchants.add("second", **SHOP)
    second = await merchants.named("second")
    foreign = Merchants(
        core.db, Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys), make_settings()
    )
    assert [merchant.name for merchant in await foreign.everyone()] == ["default"]
    assert foreign.known(second.id) is None
    assert foreign.known(1) is not None


# ── Changes ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_changed_password_and_changed_secrets_are_sealed_and_read(core, merchants):
    await merchants.add("second", **SHOP)
    assert await merchants.set_password("second", "a new hidden password")
    assert await merchants.set_secrets("second", ("a new hidden secret", "their hidden secret"))
    read = await Merchants(core.db, core.encryptor, make_settings()).named("second")
    assert read.account.password == "a new hidden password"
    assert read.callback_secrets == ("a new hidden secret", "their hidden secret")
    (row,) = await core.all("SELECT merchants::text FROM merchants WHERE name = 'second'")
    for hidden in ("a new hidden password", "a new hidden secret"):
        assert hidden not in row
        assert hidden.encode().hex() not in row
    assert await merchants.set_secrets("second", ())
    assert (await merchants.named("second")).callback_secrets == ()


async def test_no_merchant_is_changed_by_an_unknown_name(merchants):
    assert not await merchants.set_password("unknown", "x")
    assert not await merchants.set_secrets("unknown", ("a secret",))
    assert not await merchants.set_policies("unknown", {"late": "keep"})


# ── What a merchant cannot have ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["gateway_url", "merchant_api_url"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://gateway.example.com", "https://"),
        ("https://gateway.example.com\r\nX: y", "line breaks"),
        ("https://gateway.example.com/\t", "line breaks"),
        ("https://user:password@gateway.example.com", "credentials"),
        ("https://169.254.169.254/latest", "link-local"),
        ("http://169.254.10.1", "link-local"),
        ("https://[fe80::1]", "link-local"),
        ("https://[::ffff:169.254.169.254]", "link-local"),
        ("https://[fd00:ec2::254]", "metadata"),
        ("https://2852039166/", "link-local"),
        ("https://0xa9fea9fe/", "link-local"),
        ("https://0251.0376.0251.0376/", "link-local"),
        ("https://metadata.google.internal./", "metadata"),
        ("https://0.0.0.0", "unspecified"),
        ("https://[::]", "unspecified"),
        ("https://224.0.0.1", "multicast"),
        ("ftp://gateway.example.com", "http:// or https://"),
    ],
)
async def test_a_url_that_no_gateway_has_is_refused_in_a_sentence_that_names_the_field(
    merchants, field, url, said
):
    with pytest.raises(MerchantRejected, match=re.escape(said)) as caught:
        await merchants.add("second", **{**SHOP, field: url})
    assert str(caught.value).startswith(
        {"gateway_url": "gateway URL ", "merchant_api_url": "Merchant API URL "}[field]
    )
    assert await merchants.named("second") is None


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1", "https://10.0.0.7", "https://[::1]", "https://localhost", "https://sandbox", "https://127.1",
     "http://127.0.0.1:8001", "https://gateway.internal", "https://[fd12::1]"],
)  # fmt: skip
async def test_a_private_host_is_a_gateway_only_where_the_installations_own_is(core, url):
    own = make_settings(gateway_url="https://gateway.example.com")
    with pytest.raises(MerchantRejected, match="must name a public host"):
        await Merchants(core.db, core.encryptor, own).add("second", **{**SHOP, "gateway_url": url})
    sandboxed = make_settings(gateway_url="http://127.0.0.1:8001")
    assert await Merchants(core.db, core.encryptor, sandboxed).add("second", **{**SHOP, "gateway_url": url})


@pytest.mark.parametrize("username", ["", "a:b", "a\r\nb", "a\0", " a", "a" * 256])
async def test_a_user_name_that_cannot_be_sent_is_refused(merchants, username):
    with pytest.raises(MerchantRejected, match=r"^username must"):
        await merchants.add("second", **{**SHOP, "username": username})


@pytest.mark.parametrize("password", ["", "a\r\nb", "a\0b", "a" * 256])
async def test_a_password_that_cannot_be_sent_is_refused_and_not_repeated(merchants, password):
    with pytest.raises(MerchantRejected, match=r"^password must") as caught:
        await merchants.add("second", **{**SHOP, "password": password})
    assert not password or password not in str(caught.value)
    assert await merchants.add("second", **SHOP)
    with pytest.raises(MerchantRejected, match=r"^password must"):
        await merchants.set_password("second", password)


@pytest.mark.parametrize("secret", ["", "x", "short", "a secret\n", " a secret", "a\0secret"])
async def test_a_callback_secret_that_protects_nothing_is_refused(merchants, secret):
    with pytest.raises(MerchantRejected, match=r"^callback secret 2 must"):
        await merchants.add("second", **{**SHOP, "callback_secrets": ("a good secret", secret)})
    assert await merchants.add("second", **SHOP)
    with pytest.raises(MerchantRejected, match=r"^callback secret 1 must"):
        await merchants.set_secrets("second", (secret,))
    assert (await merchants.named("second")).callback_secrets == SHOP["callback_secrets"]


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "a\r\nb", "a" * 64, "-a"])
async def test_a_name_that_no_link_can_carry_is_refused(merchants, name):
    with pytest.raises(MerchantRejected, match=r"^name must"):
        await merchants.add(name, **SHOP)


# ── Policies ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_by_default_a_person_is_asked_and_nothing_is_captured(merchants):
    policies = (await merchants.named("default")).policies
    assert policies == Policies()
    assert (policies.late, policies.surplus, policies.unknown_order) == ("ask", "ask", "ask")
    assert (policies.capture, policies.lookups_per_minute) == ("manual", 3000)


async def test_a_changed_policy_is_read_and_leaves_the_others_alone(core, merchants):
    await merchants.add("second", **SHOP)
    assert await merchants.set_policies("second", {"late": "keep", "lookups_per_minute": "30"})
    assert await merchants.set_policies("second", {"surplus": "return", "capture": "automatic"})
    read = await Merchants(core.db, core.encryptor, make_settings()).named("second")
    assert read.policies == Policies(
        late="keep", surplus="return", capture="automatic", lookups_per_minute=30
    )
    assert (await merchants.named("default")).policies == Policies()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"later": "keep"},
            "there is no policy 'later': there are late, surplus, unknown_order, capture, surcharge, lookups_per_minute",
        ),
        ({"looks_per_minute": "30"}, "the policy looks_per_minute is now called lookups_per_minute"),
        ({"late": "maybe"}, "late must be ask or keep or return, not 'maybe'"),
        ({"unknown_order": ""}, "unknown_order must be ask or keep or return, not ''"),
        ({"capture": "ask"}, "capture must be manual or automatic, not 'ask'"),
        ({"lookups_per_minute": "0"}, "lookups_per_minute must be a whole number from 1 to 100000, not '0'"),
        ({"lookups_per_minute": "100001"}, "from 1 to 100000"),
        ({"lookups_per_minute": "many"}, "from 1 to 100000"),
        ({"lookups_per_minute": True}, "from 1 to 100000"),
        ({"lookups_per_minute": 1.5}, "from 1 to 100000"),
    ],
)
async def test_a_policy_that_is_none_changes_nothing(core, merchants, change, sentence):
    await merchants.add("second", **SHOP)
    with pytest.raises(PolicyRejected, match=re.escape(sentence)):
        await merchants.set_policies("second", {"surplus": "keep", **change})
    assert await core.all("SELECT policies FROM merchants WHERE name = 'second'") == [{}]


async def test_what_a_row_says_beyond_our_words_is_ignored_and_logged(core, merchants):
    await merchants.add("second", **SHOP)
    stored = '{"late": "keep", "surplus": "burn", "lookups_per_minute": null, "dance": true}'
    mac = core.encryptor.sign(POLICIES_PURPOSE, policies_text("second", json.loads(stored)))
    await core.do(
        "UPDATE merchants SET policies = CAST(:stored AS jsonb), policies_mac = :mac WHERE name = 'second'",
        stored=stored,
        mac=mac,
    )
    with capture_logs() as lines:
        read = await Merchants(core.db, core.encryptor, make_settings()).named("second")
    assert read.policies == Policies(late="keep")
    assert {line["policy"] for line in lines if line["event"] == "policy_ignored"} == {
        "surplus",
        "lookups_per_minute",
        "dance",
    }
    await core.do("UPDATE merchants SET policies = '[1]' WHERE name = 'second'")
    assert (await Merchants(core.db, core.encryptor, make_settings()).named("second")).policies == Policies()


async def test_a_watch_learns_of_merchants_by_itself_and_outlives_an_outage(core, counting, monkeypatch):
    monkeypatch.setattr("orchestrator.store.merchants._WATCHED", 0.05)
    monkeypatch.setattr("orchestrator.store.merchants._MOMENT", 0.0)
    counting.away = True
    merchants = Merchants(counting, core.encryptor, make_settings())
    watch = asyncio.create_task(merchants.watch())
    async with asyncio.timeout(10):
        while counting.reads < 2:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)
        assert merchants.known(1) is None
        counting.away = False
        while merchants.known(1) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


def test_no_policy_in_words_can_be_set_by_a_row_alone():
    """A policy that a later version adds is bound as well, in the migration too: what was signed before must
    still hold.
    """
    from orchestrator.store import merchant_fields

    assert set(merchant_fields._WORDS) <= set(merchant_fields.BOUND)
