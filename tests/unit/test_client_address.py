from __future__ import annotations

import tracemalloc
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.client_address import address_of, caller, network_of
from orchestrator.api.request_log import caller_of

GATEWAY = [
    ip_network(network)
    for network in ("185.206.120.0/24", "185.203.232.129", "185.203.233.129", "2a10:a200::/29")
]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ('"192.0.2.1:4711"', "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("192.0.2", None),
        ("192.0.2.1.5", None),
        ("[192.0.2.1", "192.0.2.1"),
        ("::1::2", None),
        ("shop.example", None),
    ],
)
def test_an_address_is_read_as_proxies_write_it(written, meant):
    assert address_of(written) == (None if meant is None else ip_address(meant))


@given(st.text(max_size=60))
def test_nothing_that_a_caller_writes_makes_it_raise(written):
    address_of(written)
    caller(written, [written], depth=1)


@given(st.lists(st.sampled_from(["185.206.120.1", "6.6.6.6", "rubbish", ""]), max_size=6), st.integers(1, 3))
def test_whatever_stands_left_of_our_proxies_entries_never_counts(forged, depth):
    ours = ["203.0.113.9", *(f"10.0.0.{number}" for number in range(1, depth))]
    one_header = [", ".join([*forged, *ours])]
    a_header_each = [*forged, *ours]
    for forwarded in (one_header, a_header_each):
        assert caller("10.0.0.9", forwarded, depth=depth) == (ip_address("203.0.113.9"), True)


def test_where_there_are_fewer_entries_than_proxies_the_caller_is_unknown():
    assert caller("10.0.0.9", ["203.0.113.9"], depth=2) == (ip_address("10.0.0.9"), False)
    assert caller("10.0.0.9", [], depth=1) == (ip_address("10.0.0.9"), False)
    assert caller(None, [], depth=0) == (None, False)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("185.206.120.0", "inside"),
        ("185.206.120.255", "inside"),
        ("185.206.121.0", "outside"),
        ("185.203.232.129", "inside"),
        ("185.203.232.128", "outside"),
        ("2a10:a207:ffff::1", "inside"),
        ("2a10:a208::", "outside"),
        ("127.0.0.1", "outside"),
    ],
)
def test_the_documented_addresses_are_the_gateways(address, network):
    assert network_of(ip_address(address), sure=True, networks=GATEWAY) == network
    assert network_of(ip_address(address), sure=False, networks=GATEWAY) == "unchecked"
    assert network_of(ip_address(address), sure=True, networks=[]) == "unchecked"
    assert network_of(None, sure=True, networks=GATEWAY) == "unchecked"


def test_what_is_too_long_for_an_address_is_not_kept_in_memory():
    def sent(number: int) -> dict[str, object]:
        entry = b"%d" % number + b"x" * 50_000
        return {"client": ("10.0.0.9", 4711), "headers": [(b"x-forwarded-for", entry)]}

    assert caller_of(sent(0), depth=1) == "10.0.0.9"
    tracemalloc.start()
    try:
        for number in range(100):
            caller_of(sent(number), depth=1)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 500_000
