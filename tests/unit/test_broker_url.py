"""URLs of the broker and of Redis: one spelling for every client, verified TLS by default, and one
sentence for a wrong URL.
"""

from __future__ import annotations

import ssl

import pytest

from orchestrator.settings.broker_url import read


@pytest.mark.parametrize("spelling", ["required", "CERT_REQUIRED", "cert_optional", None])
@pytest.mark.parametrize("url", ["rediss://:pw@broker:6380/1", "amqps://me:pw@broker:5671/shop"])
def test_tls_verifies_unless_it_is_switched_off_in_every_spelling(url, spelling):
    asked = url if spelling is None else f"{url}?ssl_cert_reqs={spelling}"
    found = read(asked, ca_file="/etc/ca.pem")
    assert found.tls is not None
    assert found.urls == (url,), "no client meets a parameter that it does not know"
    assert found.tls.for_redis() == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": "/etc/ca.pem",
        "ssl_certfile": None,
        "ssl_keyfile": None,
    }
    amqp = found.tls.for_amqp(found.host)
    assert (amqp["cert_reqs"], amqp["server_hostname"], amqp["ca_certs"]) == (
        ssl.CERT_REQUIRED,
        "broker",
        "/etc/ca.pem",
    )


@pytest.mark.parametrize("spelling", ["none", "CERT_NONE"])
def test_verification_is_turned_off_by_saying_so_alone(spelling):
    tls = read(f"rediss://broker?ssl_cert_reqs={spelling}").tls
    assert tls is not None
    assert tls.for_redis()["ssl_cert_reqs"] == "none"
    assert tls.for_amqp("broker")["cert_reqs"] is ssl.CERT_NONE
    assert "server_hostname" not in tls.for_amqp("broker"), "kombu fills in one that is None"


def test_plain_schemes_have_no_tls():
    assert read("redis://broker").tls is None
    assert read("amqp://broker").tls is None


def test_sentinel_is_read_once_for_every_client():
    found = read("sentinel://:pw@one:26379/2;sentinel://two?master_name=shop&sentinel_password=spw")
    assert found.kind == "sentinel"
    assert found.urls == ("sentinel://:pw@one:26379/2", "sentinel://:pw@two/2")
    assert found.sentinels == (("one", 26379), ("two", 26379))
    assert (found.master, found.password, found.db, found.sentinel_password) == ("shop", "pw", 2, "spw")
    assert found.tls is None
    assert read("sentinel://one?master_name=m&ssl=true").tls is not None
    assert read("sentinel://one?master_name=m&ssl=True").tls is not None
    assert read("sentinel://one?master_name=m&ssl=false").tls is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://broker", "must be a URL that starts with"),
        ("sentinel://one/0", "must name the primary that Sentinel watches"),
        ("sentinel://one;redis://two?master_name=m", "must be a URL that starts with"),
        ("redis://broker/shop", "must end with the number of Redis's database"),
        ("redis://broker?db=1", "has the parameter 'db'"),
        ("redis://broker?ssl_cert_reqs=required", "has the parameter 'ssl_cert_reqs'"),
        ("rediss://broker?ssl_cert_reqs=maybe", "has an ssl_cert_reqs that is none of"),
        ("rediss://broker?ssl_check_hostname=yes", "has an ssl_check_hostname that is neither"),
        ("sentinel://one?master_name=m&ssl=1", "has an ssl that is neither true nor false"),
        ("amqps://broker?heartbeat=1", "has the parameter 'heartbeat'"),
        ("redis://:6379", "names no host"),
        ("redis://broker:many", "host and port can be read"),
        ("redis://me:p@w@broker", "percent-encoded"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(url, said):
    with pytest.raises(ValueError, match=said):
        read(url)
