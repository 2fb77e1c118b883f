from __future__ import annotations

import pytest

from orchestrator.settings.hosts import reach_of


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("gateway.example.com", "public"), ("GATEWAY.example.com.", "public"), ("93.184.216.34", "public"), ("2606:4700::1111", "public"),
        ("0x5db8d822", "public"), ("cafe.example", "public"),
        ("localhost", "private"), ("shop.localhost", "private"), ("sandbox", "private"), ("gateway.internal", "private"),
        ("127.0.0.1", "private"), ("127.1", "private"), ("2130706433", "private"), ("::1", "private"), ("10.1.2.3", "private"),
        ("192.168.0.1", "private"), ("172.16.0.1", "private"), ("fd12::1", "private"), ("::ffff:10.0.0.1", "private"),
        ("169.254.169.254", "forbidden"), ("169.254.0.1", "forbidden"), ("0xA9FEA9FE", "forbidden"), ("2852039166", "forbidden"),
        ("0251.0376.0251.0376", "forbidden"), ("::ffff:169.254.169.254", "forbidden"), ("fe80::1", "forbidden"), ("fe80::1%eth0", "forbidden"),
        ("2002:a9fe:a9fe::", "forbidden"), ("fd00:ec2::254", "forbidden"), ("100.100.100.200", "forbidden"), ("0.0.0.0", "forbidden"), ("0", "forbidden"),  # noqa: S104 - nothing is bound to it
        ("::", "forbidden"), ("224.0.0.1", "forbidden"), ("ff02::1", "forbidden"), ("metadata.google.internal", "forbidden"),
        ("Metadata.Google.Internal.", "forbidden"), ("metadata", "forbidden"),
    ],
)  # fmt: skip
def test_a_host_is_placed_by_its_text_in_every_spelling(host, reach):
    assert reach_of(host) == reach
