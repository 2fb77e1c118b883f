"""A gateway as a process of its own, which answers lookups with what costs most to read.

Run as a script; it prints its port.

Its argument is by how much it is to be nicer than its parent: a real gateway runs on another machine.
The standard library alone, so that it starts at once. Answers are made once and sent as they are: what is
measured beside it is the reader.

    GET /kind/NAME      from now on lookups are answered so (`mixed`: with each kind in turn); all else: well
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST = 2_000_000
"""Bytes of an answer that are read at most, and marks (`<`, or `=`) that an answer may have."""
MARKS = 60_000
HEAD = (
    b"<APIResponse version='20170228'><Header><ErrorCode>0</ErrorCode></Header><Body><Result>Success</Result>"
)
TAIL = b"</Body></APIResponse>"
ABSENT = HEAD + TAIL


def row(number: int, *inside: str) -> bytes:
    fields = {
        "TransactionId": number,
        "PaymentId": f"p-{number}",
        "ShopOrderId": "another-order",
        "Shop": "shop",
        "Terminal": "terminal",
        "TransactionStatus": "preauth_failed",
        "ReasonCode": "NONE",
        "MerchantCurrency": 208,
        "MerchantCurrencyAlpha": "DKK",
        "ReservedAmount": "0.00",
        "CapturedAmount": "0.00",
        "RefundedAmount": "0.00",
        "CreatedDate": "2026-01-05 10:00:00",
    }
    told = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f"<Transaction>{told}{''.join(inside)}</Transaction>".encode()


def rows(number: int, *inside: str) -> bytes:
    made = b"".join(row(index, *inside) for index in range(number))
    return HEAD + b"<Transactions>" + made + b"</Transactions>" + TAIL


def filled(
    start: bytes, filling: Callable[[int], bytes], end: bytes, *, marks: int, size: int = LARGEST
) -> bytes:
    """Repeat a filling as often as the marks and the size allow."""
    each = len(filling(MARKS))
    number = min(marks, (size - len(start) - len(end) - 100) // each)
    return start + b"".join(map(filling, range(number))) + end


INFO = "<PaymentInfo name='n{}'>v</PaymentInfo>"
EVENT = "<ChargebackEvent><Date>2026</Date><Type>Chargeback</Type><Amount>1</Amount><Currency>DKK</Currency></ChargebackEvent>"
DOCUMENTS: dict[str, bytes] = {
    "absent": ABSENT,
    "hundred rows": rows(100),
    "all rows": rows(200),
    "thousands of rows": filled(
        HEAD + b"<Transactions>", lambda n: b"<Transaction><TransactionId>%d</TransactionId></Transaction>" % n,
        b"</Transactions>" + TAIL, marks=MARKS // 4 - 10,
    ),
    "infos": rows(100, "<PaymentInfos>", *map(INFO.format, range(240)), "</PaymentInfos>"),
    "events": rows(10, "<ChargebackEvents>", *[EVENT] * 500, "</ChargebackEvents>"),
    "elements": filled(HEAD, lambda _: b"<a/>", TAIL, marks=MARKS - 20),
    "elements, small": filled(HEAD, lambda _: b"<a/>", TAIL, marks=MARKS, size=65_000),
    "names": filled(HEAD, lambda n: b"<n%05d/>" % n, TAIL, marks=MARKS - 20),
    "deep": HEAD + b"<a>" * 29_900 + b"</a>" * 29_900 + TAIL,
    "attributes": HEAD + b"<a" + b"".join(b" n%05d='x'" % n for n in range(59_900)) + b"/>" + TAIL,
    "attribute": HEAD + b"<a n='" + b"x" * 1_900_000 + b"'/>" + TAIL,
    "text": HEAD + b"<a>" + b"\n" * 1_900_000 + b"</a>" + TAIL,
    "references": HEAD + b"<a>" + b"&lt;" * 470_000 + b"</a>" + TAIL,
    "repaired": HEAD + b"<a>" + b"&oslash;" * 19_900 + b"x" * 300_000 + b"</a>" + TAIL,
    "repaired, small": HEAD + b"<a>" + b"&b" * 19_900 + b"</a>" + TAIL,
    "bytes": HEAD + b"<a>" + b"\xf8x" * 19_900 + b"x" * 400_000 + b"</a>" + TAIL,
    "bytes, small": HEAD + b"<a>" + b"\xf8x" * 19_900 + b"</a>" + TAIL,
    "entities": b"<!DOCTYPE a [<!ENTITY a 'a'>" + b"".join(
        b"<!ENTITY a%d '%s'>" % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 30)
    ) + b"]><a>&a29;</a>",
    "no end": HEAD + b"<a>" * 20_000,
}  # fmt: skip


def whole(body: bytes, kind: bytes = b"text/xml") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


ANSWERS = {name: whole(document) for name, document in DOCUMENTS.items()} | {
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\n<\r\n" * 1_900_000
    + b"0\r\n\r\n",
    "interim": b"HTTP/1.1 103 E\r\n\r\n" * 100_000 + whole(ABSENT),
    "too long": whole(b"<" * (LARGEST + 1000)),
}
TOLD_SLOWLY = "drip"
HOSTILE = [*(name for name in ANSWERS if name != "absent"), TOLD_SLOWLY]


def token() -> str:
    parts = ({"alg": "none"}, {"iat": 1_000_000_000, "exp": 1_000_003_600})
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "x"]
    )


METHODS = {
    "methods": [
        {"id": "m", "type": "CARD", "onInitiatePayment": {"type": "API", "value": "http://127.0.0.1:9"}}
    ]
}
WELL = {
    "/authenticate": whole(json.dumps({"token": token()}).encode(), b"application/json"),
    "/session": whole(b'{"sessionId": "s"}', b"application/json"),
    "/payment-methods": whole(json.dumps(METHODS).encode(), b"application/json"),
}


class Server:
    def __init__(self) -> None:
        self.told: Iterator[str] = itertools.repeat("absent")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                length = next(
                    (line[15:] for line in lines if line.lower().startswith("content-length:")), "0"
                )
                await reader.readexactly(int(length))
                await self.answer(lines[0].split(" ")[1].partition("?")[0], writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path.startswith("/kind/"):
            kind = path[6:].replace("%20", " ")
            self.told = itertools.cycle(HOSTILE if kind == "mixed" else [kind])
            writer.write(whole(b"well"))
        elif path.endswith("/payments"):
            kind = next(self.told)
            if kind == TOLD_SLOWLY:
                await self.drip(writer)
            else:
                writer.write(ANSWERS[kind])
        else:
            writer.write(next(answer for end, answer in WELL.items() if path.endswith(end)))
        await writer.drain()

    async def drip(self, writer: asyncio.StreamWriter) -> None:
        """Answer byte by byte, as fast as the other side takes single bytes; it ends the connection when it
        has had enough.
        """
        for byte in ANSWERS["hundred rows"]:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.0005)
            if writer.is_closing():
                return


async def main() -> None:
    os.nice(int(sys.argv[1]))
    server = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until its parent has ended


if __name__ == "__main__":
    asyncio.run(main())
