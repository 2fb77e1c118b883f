"""Settings: one sentence for each wrong value, and nothing secret in what is printed."""

from __future__ import annotations

import base64
import os
import re
from decimal import Decimal

import certifi
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from pydantic import ValidationError

from orchestrator.settings import PREFIX, Settings, SettingsError, environment, load, pod_environment
from orchestrator.settings.values import http_url
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings

SHORT_KEY = base64.b64encode(b"k" * 16).decode()


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


WRONG = {
    (
        "DATABASE_URL",
        "mysql://db.example.com/x",
    ): "must be a URL that starts with postgresql:// or postgres://",
    ("DATABASE_URL", "postgresql://"): "and this one names no host",
    ("DATABASE_URL", "postgresql://sam:p@ss@db.example.com/x"): "percent-encoded: @ is written %40",
    ("DATABASE_URL", "postgresql://db.example.com:port/x"): "whose host and port can be read",
    ("DATABASE_URL", "postgresql://a:1,b:port/x"): "whose host and port can be read",
    ("DATABASE_URL", "postgresql:///x?host=a&port=1,2"): "must not have more ports (2) than hosts (1)",
    (
        "DATABASE_URL",
        "postgresql://a/x?prepare_threshold=never",
    ): "a whole number or none as prepare_threshold",
    ("DATABASE_URL", "db.example.com"): "must be a URL that starts with postgresql://",
    (
        "BROKER_URL",
        "http://127.0.0.1",
    ): "must be a URL that starts with redis:// or rediss:// or sentinel:// or amqp://",
    ("REDIS_URL", "redis:somewhere"): "must be a URL that starts with redis://",
    ("GATEWAY_URL", "gateway.example.com"): "must be a URL that starts with http:// or https://",
    ("GATEWAY_URL", "http:gateway.example.com"): "must be a URL that starts with http://",
    ("GATEWAY_URL", "https:///path"): "and this one names no host",
    ("GATEWAY_URL", "http://"): "and this one names no host",
    ("GATEWAY_URL", "https://gateway.example.com/?a=b"): "without query, fragment or credentials",
    ("MERCHANT_API_URL", "https://gateway.example.com/#a"): "without query, fragment or credentials",
    ("PUBLIC_URL", "https://sam:hush@shop.example"): "without query, fragment or credentials",
    ("MERCHANT_API_URL", "ftp://gateway.example.com"): "must be a URL that starts with http://",
    ("GATEWAY_SECRETS", "first,second"): "must be a JSON array",
    ("GATEWAY_SECRETS", "{"): "must be a JSON array",
    ("GATEWAY_SECRETS", '{"a": "b"}'): 'must be a JSON array, for example ["first","second"]',
    ("GATEWAY_SECRETS", "[1]"): "each entry must be text in quotes",
    ("BROWSER_ORIGINS", '["https://shop.example/"]'): "each entry must be an origin such as",
    ("BROWSER_ORIGINS", '["shop.example"]'): "each entry must be an origin such as",
    ("BROWSER_ORIGINS", '["https://*.shop.example"]'): "each entry must be an origin such as",
    ("BROWSER_ORIGINS", '["http://shop.example"]'): "must start with https:// unless it is on this machine",
    ("SECRET_KEYS", "[]"): "must not be an empty list",
    ("JWT_SECRETS", "[]"): "must not be an empty list",
    ("SECRET_KEYS", "abc"): "must be a JSON array",
    ("SECRET_KEYS", '["abc"]'): "each key must be 32 bytes in base64",
    ("SECRET_KEYS", f'["{SHORT_KEY}"]'): "each key must be 32 bytes in base64",
    ("SECRET_KEYS", f'["{SECRET_KEY}", "not base64!"]'): "each key must be 32 bytes in base64",
    ("JWT_SECRETS", '["short"]'): "at least 32 characters",
    ("GATEWAY_TOTAL_TIMEOUT", "soon"): "must be a number",
    ("GATEWAY_TOTAL_TIMEOUT", "0"): "must be greater than 0",
    ("GATEWAY_POOL_SIZE", "1.5"): "must be a whole number",
    ("LEASE_SECONDS", "0.5"): "greater than or equal to 1",
    ("SHUTDOWN_TIMEOUT", "0"): "greater than or equal to 1",
    ("BROKER_CA_FILE", "/nowhere/ca.pem"): "must be a file with certificates in PEM form",
    ("BROKER_URL", "sentinel://127.0.0.1"): "must name the primary that Sentinel watches",
    ("HINT_SIZE", "0"): "greater than or equal to 1",
    ("POST_SETTLEMENT_CHECKS", "3600"): "must be a JSON array, for example [3600,86400]",
    ("POST_SETTLEMENT_CHECKS", "[3600"): "must be a JSON array, for example [3600,86400]",
    ("POST_SETTLEMENT_CHECKS", '["soon"]'): "each entry must be a number",
    ("POST_SETTLEMENT_CHECKS", "[0, 60]"): "each number must be greater than 0",
    ("POST_SETTLEMENT_CHECKS", "[60, 60]"): "greater than the one before it",
    ("POST_SETTLEMENT_CHECKS", "[60, Infinity]"): "each number must be",
    ("CALLBACK_MAX_AGE", "0"): "greater than or equal to 1",
    ("GATEWAY_NETWORKS", "185.206.120.0/24"): 'must be a JSON array, for example ["first","second"]',
    (
        "GATEWAY_NETWORKS",
        '["gateway.example.com"]',
    ): "each entry must be an address or a network such as 192.0.2.0/24",
    ("GATEWAY_NETWORKS", '["185.206.120.7/24"]'): "each entry must be an address or a network",
    ("GATEWAY_NETWORKS", "[7]"): "each entry must be text in quotes",
    ("TRUSTED_PROXIES", "-1"): "greater than or equal to 0",
    ("TRUSTED_PROXIES", "one"): "must be a whole number",
    ("REQUIRE_GATEWAY_NETWORK", "perhaps"): "must be true or false",
    ("CALLBACKS_LIMIT", "0"): "greater than or equal to 1",
    ("CALLBACKS_UNPROVEN_LIMIT", "0"): "greater than or equal to 1",
    ("LOG_FORMAT", "xml"): "must be 'auto', 'console' or 'json'",
    ("GATEWAY_URL", "https://gateway.example.com\nx"): "without spaces, line breaks",
    ("GATEWAY_URL", "https://gate way.example.com"): "without spaces, line breaks",
    ("GATEWAY_URL", "https://169.254.169.254"): "not a link-local, metadata",
    ("MERCHANT_API_URL", "http://0xa9fea9fe"): "not a link-local, metadata",
    ("PUBLIC_URL", "http://0.0.0.0:8000"): "not a link-local, metadata",
    ("GATEWAY_USERNAME", "a:b"): "a user name no colon",
    ("GATEWAY_USERNAME", "sh\rop"): "must not hold line breaks",
    ("GATEWAY_PASSWORD", "hu\nsh"): "must not hold line breaks",
    ("GATEWAY_SECRETS", '["x"]'): "must have at least 6 characters",
    ("GATEWAY_SECRETS", f'["{"x" * 256}"]'): "must have at most 255 characters, and has 256",
    ("GATEWAY_SECRETS", '["a se\\ncret"]'): "must not hold control characters",
    ("API_CONNECTIONS", "1"): "greater than or equal to 16",
    ("LOG_LEVEL", "INFO"): "must be 'debug', 'info', 'warning' or 'error'",
}


@pytest.mark.parametrize(("setting", "sentence"), tuple(WRONG.items()), ids=lambda value: str(value)[:50])
def test_a_wrong_value_is_one_sentence_that_names_its_variable(monkeypatch, setting, sentence):
    name, value = setting
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as error:
        load()
    said = str(error.value)
    assert said.startswith(PREFIX + name)
    assert sentence in said
    assert "\n" not in said
    assert error.value.__cause__ is None


@pytest.mark.parametrize("value", ["pa55word-that-is-no-key", '["pa55word-that-is-no-key"]'])
def test_the_sentence_does_not_quote_a_secret(monkeypatch, value):
    monkeypatch.setenv("ORCHESTRATOR_SECRET_KEYS", value)
    with pytest.raises(SettingsError) as error:
        load()
    assert "pa55word" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ORCHESTRATOR_DATABSE_URL", "ORCHESTRATOR_DATABASE_URL"),
        ("ORCHESTRATOR_SECRET_KEY", "ORCHESTRATOR_SECRET_KEYS"),
        ("orchestrator_gatway_url", "ORCHESTRATOR_GATEWAY_URL"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(monkeypatch, typed, meant):
    monkeypatch.setenv(typed, "x")
    with pytest.raises(
        SettingsError, match=rf"^{typed} is not a setting of the orchestrator: did you mean {meant}"
    ):
        load()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ORCHESTRATOR_FIRST_LOOK", "ORCHESTRATOR_FIRST_CHECK_AFTER"),
        ("ORCHESTRATOR_LOOK_CAP", "ORCHESTRATOR_CHECK_INTERVAL_CAP"),
        ("orchestrator_settle_watch", "ORCHESTRATOR_POST_SETTLEMENT_CHECKS"),
    ],
)
def test_an_earlier_name_of_a_setting_is_answered_with_the_present_name(monkeypatch, typed, meant):
    monkeypatch.setenv(typed, "60")
    with pytest.raises(SettingsError, match=rf"^{typed} is now called {meant}: rename the variable$"):
        load()


@pytest.mark.parametrize("name", ["ORCHESTRATOR_X", "ORCHESTRATOR_COLOUR", "ORCHESTRATOR_"])
def test_an_unknown_name_that_resembles_nothing_is_refused_without_a_guess(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=rf"^{name} is not a setting of the orchestrator$"):
        load()


@pytest.mark.parametrize("name", ["GATEWAY_URL", "PUBLIC_URL", "SECRET_KEYS", "LEASE_SECONDS"])
def test_an_empty_variable_counts_as_not_set(monkeypatch, name):
    monkeypatch.setenv(PREFIX + name, "")
    settings = load()
    assert settings == Settings()
    assert name.lower() not in settings.model_fields_set


def test_lists_are_json_arrays_newest_first(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_SECRETS", '["new one", "older one"]')
    monkeypatch.setenv("ORCHESTRATOR_POST_SETTLEMENT_CHECKS", "[60, 3600.5]")
    settings = load()
    assert [secret.get_secret_value() for secret in settings.gateway_secrets] == ["new one", "older one"]
    assert settings.post_settlement_checks == (60.0, 3600.5)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:x@db.example.com:5433/orders",
        "postgres://db.example.com/orders",
        "postgresql+psycopg://db.example.com/orders",
        "postgresql:///orders?host=/var/run/postgresql",
        "postgresql://shop:x@a:5432,b:5433/orders",
        "postgresql://shop:x@a,b/orders?prepare_threshold=0",
    ],
)
def test_every_spelling_of_a_postgres_url_is_taken(monkeypatch, url):
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", url)
    assert load().database_url == url


def test_a_final_slash_of_a_url_does_not_matter(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_URL", "https://gateway.example.com/")
    assert load().gateway_url == "https://gateway.example.com"


def test_printing_the_settings_shows_no_secret():
    settings = make_settings(
        database_url="postgresql://shop:hush-1@db.example.com/x",
        broker_url="amqp://shop:hush-2@mq.example.com",
        redis_url="redis://:hush-3@127.0.0.1",
        gateway_password="hush-4",
        gateway_secrets=("hush-5",),
        jwt_secrets=("hush-6" * 8,),
    )
    for printed in (repr(settings), str(settings), f"{settings}"):
        assert "hush" not in printed
        assert SECRET_KEY not in printed
        assert "gateway_username='shop'" in printed


def test_settings_do_not_change_once_read():
    settings = make_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.lease_seconds = 1.0


def test_the_merchant_api_is_below_the_gateway_unless_it_lives_elsewhere():
    assert Settings().merchant_api == ""
    assert make_settings(gateway_url="https://g.example.com").merchant_api == "https://g.example.com"
    assert make_settings(merchant_api_url="https://m.example.com").merchant_api == "https://m.example.com"


def test_a_command_that_needs_a_setting_says_which():
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_DATABASE_URL is not set: this command needs it"):
        Settings().need("database_url")
    assert make_settings(database_url="postgresql://x/y").need("database_url") == "postgresql://x/y"


def test_the_gateways_documented_addresses_are_known_and_can_be_replaced(monkeypatch):
    assert [str(network) for network in load().gateway_ranges] == [
        "185.206.120.0/24",
        "185.203.232.129/32",
        "185.203.233.129/32",
        "2a10:a200::/29",
    ]
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_NETWORKS", '["127.0.0.1"]')
    assert [str(network) for network in load().gateway_ranges] == ["127.0.0.1/32"]
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_NETWORKS", "[]")
    assert load().gateway_ranges == ()
    monkeypatch.setenv("ORCHESTRATOR_REQUIRE_GATEWAY_NETWORK", "true")
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_REQUIRE_GATEWAY_NETWORK needs GATEWAY_NETWORKS"):
        load()


def test_a_child_process_reads_what_its_parent_has(monkeypatch):
    known = make_settings(gateway_networks=("192.0.2.0/24",), require_gateway_network=True, trusted_proxies=2)
    for name, value in environment(known).items():
        monkeypatch.setenv(name, value)
    read = load()
    assert read == known


PUBLIC_KEY = (
    ed25519.Ed25519PrivateKey.generate()
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
GIVEN = {
    "approval_limits": {"DKK": Decimal("10000.50"), "*": Decimal(0)},
    "broker_ca_file": certifi.where(),
    "broker_url": "amqp://user:p%40ss@broker.example/vhost",
    "browser_origins": ("https://shop.example",),
    "console_oidc_client_id": "console",
    "console_oidc_client_secret": "hush, with a comma",
    "database_url": "postgresql://a:b@db.example/x?sslmode=require",
    "gateway_allowed_hosts": ("*.gateway.example", "other.example"),
    "gateway_password": 'quotes " and \\ and ø',
    "gateway_secrets": ("first secret", 'second "quoted"'),
    "gateway_username": "shop",
    "jwt_public_keys": (PUBLIC_KEY,),
    "jwt_secrets": (JWT_SECRET,),
    "log_file": "some where.log",
    "metrics_listen": "127.0.0.1:9100",
    "migration_url": "postgresql://owner:b@db.example/x",
    "personal_data_retention_days": 400.5,
    "redis_url": "redis://cache.example/1",
    "require_gateway_network": True,
    "sandbox_token": "hush",
    "secret_keys": (SECRET_KEY,),
    "webhook_allowed_networks": ("10.0.0.0/8", "fd00::/8"),
}
URLS = {name for name in Settings.model_fields if name.endswith(("_url", "_issuer"))} - GIVEN.keys()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_child_process_reads_each_setting_as_its_parent_did(monkeypatch, name):
    field = Settings.model_fields[name]
    value = GIVEN.get(name, "https://somewhere.example" if name in URLS else field.default)
    try:
        known = load({name: value})
    except SettingsError:
        # A setting that another one goes with.
        known = load(
            {**{other: GIVEN[other] for other in GIVEN if other.startswith("console_")}, name: value}
        )
    spelled = environment(known)
    assert PREFIX + name.upper() in spelled or value is None
    for variable, text in spelled.items():
        monkeypatch.setenv(variable, text)
    assert load() == known


@pytest.mark.parametrize("text", ["{'DKK': 10000}", "[1]", "10000", "DKK"])
def test_a_setting_that_is_an_object_says_so(monkeypatch, text):
    monkeypatch.setenv("ORCHESTRATOR_APPROVAL_LIMITS", text)
    said = r'^ORCHESTRATOR_APPROVAL_LIMITS: must be a JSON object, for example \{"DKK":10000\}$'
    with pytest.raises(SettingsError, match=said):
        load()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://g.example", "must be a URL that starts with http:// or https://"),
        ("https://", "names no host"),
        ("https://sam:hush@g.example", "must be a URL without query, fragment or credentials"),
        ("https://g.example/?a=b", "must be a URL without query, fragment or credentials"),
    ],
)
def test_a_base_url_from_elsewhere_is_held_to_the_same_rule(url, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        http_url(url)
    assert "hush" not in str(error.value)
    assert http_url("https://g.example/") == "https://g.example"


def test_overrides_go_before_the_environment_and_are_checked_too(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_HINT_SIZE", "7")
    assert load().hint_size == 7
    assert load({"hint_size": 9}).hint_size == 9
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_HINT_SIZE: "):
        load({"hint_size": 0})


def test_the_environment_of_other_programs_is_ignored(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "mysql://x")
    monkeypatch.setenv("XORCHESTRATOR_FOO", "1")
    assert load().database_url is None


SERVICE_LINKS = {
    "": "10.0.0.1",
    "WORKER_": "10.96.12.7",
    "REDIS_": "fd00:10:96::a1",
    "DATABASE_URL_": "10.0.0.2",
    "SERVICE_": "10.0.0.3",
    "PORT_53_UDP_": "10.0.0.4",
}


def links(service: str, address: str) -> dict[str, str]:
    """The variables that Kubernetes makes for a service with a named port 8000 and a UDP port 53."""
    host = f"[{address}]" if ":" in address else address
    own = f"ORCHESTRATOR_{service}"
    made = {
        f"{own}SERVICE_HOST": address,
        f"{own}SERVICE_PORT": "8000",
        f"{own}SERVICE_PORT_HTTP": "8000",
        f"{own}SERVICE_PORT_DNS_UDP": "53",
        f"{own}PORT": f"tcp://{host}:8000",
    }
    for number, protocol in (("8000", "tcp"), ("53", "udp")):
        port = f"{own}PORT_{number}_{protocol.upper()}"
        made |= {
            port: f"{protocol}://{host}:{number}",
            f"{port}_PROTO": protocol,
            f"{port}_PORT": number,
            f"{port}_ADDR": address,
        }
    return made


@pytest.mark.parametrize(("service", "address"), SERVICE_LINKS.items())
def test_variables_that_kubernetes_makes_for_services_do_not_stop_the_start(monkeypatch, service, address):
    for name, value in links(service, address).items():
        monkeypatch.setenv(name, value)
    assert load() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORCHESTRATOR_SERVICE_HOST", "database.example"),
        ("ORCHESTRATOR_SERVICE_HOST", "10.0.0.256"),
        ("ORCHESTRATOR_SERVICE_PORT", "80 "),
        ("ORCHESTRATOR_SERVICE_PORT_HTTP", "70000"),
        ("ORCHESTRATOR_SERVICE_PORTS", "8000"),
        ("ORCHESTRATOR_PORT", "8000"),
        ("ORCHESTRATOR_PORT", "http://10.0.0.1:8000"),
        ("ORCHESTRATOR_PORT", "tcp://api.example:8000"),
        ("ORCHESTRATOR_PORT_8000_TCP", "tcp://10.0.0.1:8001"),
        ("ORCHESTRATOR_PORT_8000_TCP", "udp://10.0.0.1:8000"),
        ("ORCHESTRATOR_PORT_8000_TCP_PROTO", "udp"),
        ("ORCHESTRATOR_PORT_8000_TCP_PORT", "8001"),
        ("ORCHESTRATOR_PORT_8000_TCP_ADDR", "localhost"),
        ("ORCHESTRATOR_PORT_8000_HTTP", "tcp://10.0.0.1:8000"),
        ("orchestrator_port", "tcp://10.0.0.1:8000"),
        ("ORCHESTRATOR_DATABASE_PORT", "5432"),
        ("ORCHESTRATOR_API_PORT", "8000"),
    ],
)
def test_what_kubernetes_would_not_make_is_refused_like_any_unknown_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is not a setting of the orchestrator"):
        load()


def test_no_setting_has_a_name_that_kubernetes_could_make():
    made = (
        pod_environment._SERVICE_HOST,
        pod_environment._SERVICE_PORT,
        pod_environment._SERVICE_PART,
        pod_environment._SERVICE_URL,
    )
    names = [PREFIX + name.upper() for name in Settings.model_fields]
    assert not [name for name in names if any(link.fullmatch(name) for link in made)]


def test_a_setting_in_two_spellings_is_refused_and_not_chosen_by_chance(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_HINT_SIZE", "7")
    monkeypatch.setenv("orchestrator_hint_size", "9")
    with pytest.raises(
        SettingsError, match=r"^orchestrator_hint_size and ORCHESTRATOR_HINT_SIZE are both set"
    ):
        load()


def test_an_unknown_name_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_\x1b[2J", "1")
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_\ufffd\[2J is not a setting"):
        load()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GATEWAY_PASSWORD", "api-pass\n", "ends in a line break"),
        ("GATEWAY_PASSWORD", "api-pass\r\n", "ends in a line break"),
        ("GATEWAY_PASSWORD", "\napi-pass", "begins with a line break"),
        ("GATEWAY_PASSWORD", " api-pass", "begins with white space"),
        ("GATEWAY_PASSWORD", "api-pass\t", "ends in white space"),
        ("GATEWAY_PASSWORD", "api-pass\u00a0", "ends in white space"),
        ("GATEWAY_USERNAME", "shop\n", "ends in a line break"),
        ("GATEWAY_SECRETS", '["fine", "secret\\n"]', "an entry ends in a line break"),
        ("JWT_SECRETS", f'["{"s" * 40} "]', "an entry ends in white space"),
        ("SECRET_KEYS", f'["{SECRET_KEY}\\n"]', "an entry ends in a line break"),
        ("DATABASE_URL", "postgresql://u:p@db.example/x\n", "ends in a line break"),
        ("BROKER_URL", " redis://127.0.0.1", "begins with white space"),
        ("PUBLIC_URL", "https://pay.example\n", "ends in a line break"),
    ],
)
def test_white_space_around_a_secret_or_text_is_named_with_its_variable(monkeypatch, name, value, words):
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == f"{PREFIX}{name}: {words}: remove it"


def test_blanks_inside_a_password_and_around_a_number_or_list_are_taken(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_PASSWORD", "two words")
    monkeypatch.setenv("ORCHESTRATOR_HINT_SIZE", "7\n")
    monkeypatch.setenv("ORCHESTRATOR_GATEWAY_SECRETS", '["secret"]\n')
    settings = load()
    assert settings.gateway_password.get_secret_value() == "two words"
    assert settings.hint_size == 7
