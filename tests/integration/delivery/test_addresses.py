"""No delivery opens a connection to anything but a public address, however its URL is spelled and whatever a
name leads to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from yarl import URL

from orchestrator.delivery import sender as wire
from orchestrator.delivery.addresses import AddressPolicy, WebhookUrlRejected, checked_url, is_public
from orchestrator.delivery.sender import Outcome, Sender

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.215.14"
HOSTS = (
    # Loopback, in every spelling of IPv4 that a resolver takes.
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "127.00.00.01", "0127.0.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f.1", "0x7f000001",
    "2130706433", "017700000001", "0x7F.0x0.0x0.0x1", "127.0.0.1.", "0", "0.0.0.0", "000.000.000.000", "0x0", "00",  # noqa: S104 - a spelling
    # Names of this machine, of clouds, and of private networks.
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost", "a.localhost", "metadata", "metadata.google.internal",
    "instance-data", "db", "printer.local", "redis.internal", "router.lan", "nas.home.arpa",
    # Private networks, link-local addresses and those of machine services.
    "10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1", "169.254.169.254", "0xa9fea9fe", "2852039166", "169.254.43518", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255",
    # IPv6: itself, and what carries IPv4 inside.
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[::7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:0:0::1]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[fe80::1]", "[fe80::1%25lo]", "[fe80::1%lo]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]",
    "[2001:db8::1]", "[2001:10::1]", "[3ffe::1]", "[5f00::1]", "[100::1]", "[2606:4700::5efe:7f00:1]", "[::ffff:0:127.0.0.1]",
    # What programs read differently.
    "127。0。0。1", "①②⑦.⓪.⓪.①", "ⓛocalhost", "127.0.0.1%00.example.com", "127.0.0.1%2eexample.com", "example.com%00@127.0.0.1", "127.0.0.1\\@example.com",
    "example.com\\@127.0.0.1", "example.com@127.0.0.1", "user:password@127.0.0.1", "example.com:80@127.0.0.1", "example.com#@127.0.0.1",
    "127.0.0.1#example.com", "127.0.0.1 example.com", "127.0.0.1\texample.com", "127.0.0.1\nexample.com", "[::1].example.com", "[127.0.0.1]", "1.2.3.4.5",
    "example..com", ".example.com", "-example.com", "",
)  # fmt: skip
SCHEMES = (
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "ftp://example.com/",
    "//127.0.0.1/",
    "http:127.0.0.1",
    "https:/127.0.0.1",
    "https:///127.0.0.1",
    "javascript:alert(1)",
    "unix:///run/docker.sock",
    "HTTPS://127.0.0.1/",
    "https://example.com:22/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:8443#x",
    "https://example.com/%zz",
    "https://example.com/a b",
    "https://" + "a" * 3000,
)


class Net:
    """A listener, and every address that a connection was tried to."""

    def __init__(self) -> None:
        self.accepted = 0
        self.tried: list[tuple] = []
        self.port = 0

    async def _accept(self, _reader, writer) -> None:
        self.accepted += 1
        writer.close()


@pytest.fixture
async def net(monkeypatch):
    """Listen on every loopback address, and let no connection out of this machine."""
    listening = Net()
    loop = asyncio.get_running_loop()
    connect = type(loop).sock_connect

    async def recorded(self, sock, address):
        listening.tried.append(address)
        if not ip_address(address[0].partition("%")[0]).is_loopback:
            raise ConnectionRefusedError(111, "refused by the test")
        return await connect(self, sock, address)

    monkeypatch.setattr(type(loop), "sock_connect", recorded)
    server = await asyncio.start_server(listening._accept, "127.0.0.1", 0)
    listening.port = server.sockets[0].getsockname()[1]
    more = []
    for host in ("0.0.0.0", "::1"):  # noqa: S104 - whatever it is reached by is found
        try:
            more.append(await asyncio.start_server(listening._accept, host, listening.port, reuse_port=False))
        except OSError:
            continue  # taken by the first listener, or a machine without IPv6
    yield listening
    for each in (server, *more):
        each.close()


def sending(*allowed: str, **given) -> Sender:
    policy = AddressPolicy([ip_network(network) for network in allowed])
    return Sender(policy, connect_timeout=1.0, total_timeout=2.0, **given)


def of_this_machine(host, port, **given):
    """Resolve addresses in every spelling, and the names that this machine itself resolves; no
    server is asked.
    """
    if "localhost" in host.lower():
        return socket.getaddrinfo(host, port, **given)
    return socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, **given)


def leading_to(*answers: str):
    """Return a resolver that gives these addresses, in this order, and the list of what it was
    asked.
    """
    asked: list[str] = []

    def lookup(host, port, **_):
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in answer.split(",")
        ]

    return lookup, asked


@pytest.mark.parametrize("allowed", [(), ("10.99.0.0/16",)], ids=["public", "with a private network"])
async def test_no_spelling_of_a_url_leads_to_what_is_not_public(net, allowed, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{net.port}")
    sender = sending(*allowed, lookup=of_this_machine)
    urls = [*SCHEMES]
    for host in HOSTS:
        for scheme in ("http", "https"):
            urls += [f"{scheme}://{host}/", f"{scheme}://{host}:{net.port}/hook"]
    for url in urls:
        answer = await sender.send(url, {}, b"{}")
        assert answer.outcome in {Outcome.WRONG_URL, Outcome.FORBIDDEN_ADDRESS, Outcome.NAME_NOT_FOUND}, url
    await sender.close()
    assert net.tried == []
    assert net.accepted == 0
    assert len(HOSTS) + len(SCHEMES) > 120


async def test_the_socket_is_the_last_to_check_whatever_led_to_it(net):
    """Past the check of the text, as if it had a hole."""
    sender = sending(lookup=of_this_machine)
    for host in HOSTS:
        for scheme in ("http", "https"):
            try:
                url = URL(f"{scheme}://{host}:{net.port}/", encoded=True)
            except ValueError:
                continue
            with pytest.raises(Exception):  # noqa: B017 - each in its own way
                await sender._exchange(url, {}, b"{}", time.monotonic())
    await sender.close()
    assert net.tried == []
    assert net.accepted == 0


@pytest.mark.parametrize(
    "answer",
    ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", f"{PUBLIC},127.0.0.1",
     f"127.0.0.1,{PUBLIC}", f"{PUBLIC},::1", "fe80::1%lo", "0.0.0.0"],  # noqa: S104 - a spelling
)  # fmt: skip
async def test_a_name_that_leads_to_one_private_address_is_not_connected_to(net, answer):
    lookup, asked = leading_to(answer)
    sender = sending(lookup=lookup)
    found = await sender.send(f"https://shop.example:{net.port}/", {}, b"{}")
    await sender.close()
    assert asked == ["shop.example"]
    assert found.outcome is Outcome.FORBIDDEN_ADDRESS
    assert net.tried == []


async def test_a_name_that_changes_between_check_and_connection_is_resolved_once_and_connected_where_it_was_checked(
    net,
):
    lookup, asked = leading_to(PUBLIC, "127.0.0.1")
    sender = sending(lookup=lookup)
    found = await sender.send(f"https://shop.example:{net.port}/", {}, b"{}")
    assert (found.outcome, asked, net.tried) == (
        Outcome.NOT_CONNECTED,
        ["shop.example"],
        [(PUBLIC, net.port)],
    )
    found = await sender.send(f"https://shop.example:{net.port}/", {}, b"{}")
    assert (found.outcome, len(asked), len(net.tried)) == (Outcome.FORBIDDEN_ADDRESS, 2, 1)
    await sender.close()
    assert net.accepted == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(net, status):
    async def redirect(_):
        return web.Response(status=status, headers={"Location": f"http://127.0.0.1:{net.port}/secret"})

    app = web.Application()
    app.router.add_post("/", redirect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sender = sending("127.0.0.0/8")
    found = await sender.send(f"http://127.0.0.1:{runner.addresses[0][1]}/", {}, b"{}")
    await sender.close()
    await runner.cleanup()
    assert (found.outcome, found.status, net.accepted) == (Outcome.REDIRECT, status, 0)


async def test_plain_http_goes_to_allowed_networks_only(net):
    lookup, _ = leading_to(PUBLIC)
    sender = sending("10.99.0.0/16", lookup=lookup)
    assert (await sender.send("http://shop.example/", {}, b"{}")).outcome is Outcome.FORBIDDEN_ADDRESS
    assert (await sender.send(f"http://{PUBLIC}/", {}, b"{}")).outcome is Outcome.WRONG_URL
    assert net.tried == []
    await sender.close()


async def test_certificate_sni_and_host_are_of_the_name_though_the_connection_goes_to_the_address(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, said, _context: names.append(said)
    hosts: list[str | None] = []

    async def take(request):
        hosts.append(request.headers.get("Host"))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    lookup, asked = leading_to("127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(pem))
    sender = sending("127.0.0.0/8", lookup=lookup, tls=trusting)
    assert (await sender.send(f"https://shop.example:{port}/", {}, b"{}")).delivered
    assert (await sender.send(f"https://other.example:{port}/", {}, b"{}")).outcome is Outcome.NOT_SECURE
    await sender.close()
    doubting = sending("127.0.0.0/8", lookup=lookup)
    assert (await doubting.send(f"https://shop.example:{port}/", {}, b"{}")).outcome is Outcome.NOT_SECURE
    await doubting.close()
    await runner.cleanup()
    assert (hosts, names[0], asked[0]) == ([f"shop.example:{port}"], "shop.example", "shop.example")


async def test_an_answer_costs_no_more_than_its_bounds(monkeypatch):
    """Answers that never end, or are no HTTP."""
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"400\r\n" + b"y" * 1024 + b"\r\n")
                sent += 1024
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def nonsense(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 smtp ready\r\n")
        await writer.drain()
        writer.close()

    async def silent(_reader, writer):
        writer.close()

    sender = sending("127.0.0.0/8")
    outcomes = []
    for behave in (endless, nonsense, silent):
        server = await asyncio.start_server(behave, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answer = await sender.send(f"http://127.0.0.1:{port}/", {}, b"{}")
        outcomes.append((answer.outcome, len(answer.body)))
        server.close()
    await sender.close()
    assert outcomes == [
        (Outcome.DELIVERED, wire.KEPT),
        (Outcome.NOT_HTTP, 0),
        (Outcome.CONNECTION_LOST, 0),
    ]
    assert sent < 20_000_000


@pytest.mark.parametrize(
    ("begins", "goes_on", "expected"),
    [
        # Its end is that of the connection: what we cut off would look whole.
        (b"HTTP/1.1 200 OK\r\n\r\ntaken", b"", (Outcome.TIMED_OUT, b"")),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"z", (Outcome.TIMED_OUT, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"z", (Outcome.TIMED_OUT, b"")),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n", (Outcome.TIMED_OUT, b"")),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken",
            b"",
            (Outcome.DELIVERED, b"taken"),
        ),
    ],
)
async def test_an_answer_is_timed_as_a_whole(begins, goes_on, expected):
    async def answering(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begins)
        try:
            while not reader.at_eof():
                writer.write(goes_on)
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    sender = sending("127.0.0.0/8")
    answer = await sender.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", {}, b"{}")
    await sender.close()
    server.close()
    assert (answer.outcome, answer.body) == expected


async def test_what_comes_on_an_idle_connection_is_not_taken_for_the_next_answer():
    """Some servers announce with a 408 that they close an idle connection."""
    connections = 0
    announced = asyncio.Event()

    async def answering(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken")
        if connections == 1:
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            announced.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    sender = sending("127.0.0.0/8")
    first = await sender.send(url, {}, b"{}")
    await announced.wait()
    await asyncio.sleep(0.05)
    second = await sender.send(url, {}, b"{}")
    await sender.close()
    server.close()
    assert [(each.outcome, each.status, each.body) for each in (first, second)] == [
        (Outcome.DELIVERED, 200, b"taken")
    ] * 2
    assert connections == 2


@pytest.mark.parametrize("value", ["one\r\nHost: other.example", "one\ntwo", "one\rtwo", "naïve"])
async def test_a_header_that_would_be_more_than_a_line_of_ascii_is_not_sent(net, value):
    sender = sending("127.0.0.0/8")
    answer = await sender.send(f"http://127.0.0.1:{net.port}/", {"x-correlation-id": value}, b"{}")
    await sender.close()
    assert (answer.delivered, net.accepted) == (False, 0)


@pytest.mark.parametrize(
    "url",
    ["https://shop.example", "https://shop.example/webhooks?token=a%20b&c=d", "https://shop.example:8443/x", f"https://{PUBLIC}/", "https://xn--bcher-kva.example/",
     "https://[2606:4700:4700::1111]/", "https://a_b.shop.example/-/~x"],
)  # fmt: skip
def test_usual_urls_are_taken(url):
    assert checked_url(url, AddressPolicy()) == url


@pytest.mark.parametrize(
    "url", ["http://10.20.1.1:8080/x", "http://shop.internal/x", "https://db/x", "http://localhost:9000/"]
)
def test_private_hosts_are_accepted_where_their_network_is_allowed(url):
    with pytest.raises(WebhookUrlRejected):
        checked_url(url, AddressPolicy())
    assert checked_url(url, AddressPolicy([ip_network("10.20.0.0/16")])) == url


def test_public_addresses_are_public():
    for address in (
        PUBLIC,
        "1.1.1.1",
        "8.8.8.8",
        "2606:4700:4700::1111",
        "2a00:1450:400f:80d::200e",
        "192.0.1.1",
        "172.32.0.1",
        "100.128.0.1",
    ):
        assert is_public(ip_address(address)), address
