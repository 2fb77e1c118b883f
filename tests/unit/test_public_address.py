from __future__ import annotations

import socket

import pytest

from orchestrator.cli import public_address
from orchestrator.cli.public_address import is_local, resolved

REAL = "https://shop.gateway.example"


def faults(url, gateways):
    return list(public_address.faults(url, gateways))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:8000", ["only this machine", "80 and 443 only", "not encrypted"]),
        ("https://localhost", ["only this machine"]),
        ("https://api.localhost", ["only this machine"]),
        ("https://[::1]", ["only this machine"]),
        ("https://[::ffff:127.0.0.1]", ["only this machine"]),
        ("https://127.1", ["only this machine"]),
        ("https://0x7f000001", ["only this machine"]),
        ("https://0.0.0.0", ["only this machine"]),
        ("https://10.1.2.3", ["only a network of its own"]),
        ("https://192.168.0.7", ["only a network of its own"]),
        ("https://172.16.9.9", ["only a network of its own"]),
        ("https://169.254.169.254", ["only a network of its own"]),
        ("https://100.64.0.1", ["only a network of its own"]),
        ("https://[fd00::1]", ["only a network of its own"]),
        ("https://[fe80::1]", ["only a network of its own"]),
        ("https://api", ["only a network of its own"]),
        ("https://api.default.svc.cluster.local", ["only a network of its own"]),
        ("https://pay.internal", ["only a network of its own"]),
        ("https://pay.example:8443", ["80 and 443 only"]),
        ("http://pay.example:8080", ["80 and 443 only", "not encrypted"]),
        ("http://pay.example", ["not encrypted"]),
        ("http://api:8000", ["only a network of its own", "80 and 443 only", "not encrypted"]),
    ],
)
def test_what_a_real_gateway_cannot_reach_is_named_with_the_setting_and_what_to_do(url, words):
    found = faults(url, [REAL])
    assert [word for word, fault in zip(words, found, strict=True) if word not in fault] == []
    assert all(fault.startswith(f"ORCHESTRATOR_PUBLIC_URL is {url}") and ": " in fault for fault in found)


@pytest.mark.parametrize(
    "url",
    [
        "https://pay.example",
        "https://pay.example/shop",
        "https://pay.example:443",
        "https://8.8.8.8",
        "https://[2001:4860::8]",
    ],
)
def test_a_public_address_is_no_finding(url):
    assert faults(url, [REAL]) == []


@pytest.mark.parametrize(
    "gateway",
    [
        None,
        "http://127.0.0.1:8001",
        "http://localhost:8001",
        "http://sandbox:8001",
        "http://10.0.0.9",
        "http://[::1]:8001",
    ],
)
def test_a_gateway_on_this_machine_or_network_reaches_everything(gateway):
    assert faults("http://127.0.0.1:8000", [gateway]) == []
    assert gateway is None or is_local(gateway)


def test_one_merchant_with_a_real_gateway_is_enough():
    assert faults("http://127.0.0.1:8000", ["http://sandbox:8001", None, REAL])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "addresses", "found"),
    [
        ("https://pay.shop.example", ["8.8.8.8", "2001:4860::8"], None),
        ("https://pay.shop.example", ["10.1.2.3", "8.8.8.8"], (False, "pay.shop.example is 10.1.2.3 here")),
        ("https://pay.shop.example", ["::1"], (False, "the internet must get another address")),
        ("https://pay.shop.example", socket.gaierror(-2), (True, "pay.shop.example does not resolve")),
        ("https://pay.shop.example", TimeoutError(), (True, "make its DNS entry")),
        ("https://8.8.8.8", AssertionError(), None),
        ("http://api.internal:8000", AssertionError(), None),
    ],
)
async def test_the_name_in_it_is_looked_up(monkeypatch, url, addresses, found):
    async def resolve(host):
        if isinstance(addresses, Exception):
            raise addresses
        return addresses

    monkeypatch.setattr(public_address, "_resolve", resolve)
    said = await resolved(url, [REAL])
    assert (said is None) == (found is None)
    assert said is None or (said[0], found[1] in said[1]) == (found[0], True)
    assert await resolved(url, ["http://127.0.0.1:1", None]) is None


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["pay.no-such-host.example", f"{'a' * 64}.example", "pay..example"])
async def test_a_name_that_does_not_exist_is_found_by_the_resolver_of_this_host(host):
    said = await resolved(f"https://{host}", [REAL])
    assert said is not None
    assert said[0]
