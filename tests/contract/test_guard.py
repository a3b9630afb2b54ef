"""Which addresses, names and ports a user's URL may lead to."""

import ipaddress

import pytest

from worker.contract.guard import Guard, is_public


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1", "192.0.0.9",
     "192.0.0.192", "::", "::1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::",
     "fe80::1", "fd00::1", "ff02::1", "2001:0:1::1", "2001:db8::1",
     "3fff::1", "5f00::1", "fec0::1"],
)  # fmt: skip
def test_addresses_of_somebodys_inside_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("entry", "host", "address", "port", "allowed"),
    [
        ("", "a.example", "1.1.1.1", 443, True),
        ("", "a.example", "1.1.1.1", 6379, False),
        ("", "a.example", "10.0.0.1", 80, False),
        ("a.example", "a.example", "10.0.0.1", 9000, True),
        ("A.Example", "a.example.", "10.0.0.1", 9000, True),
        ("a.example", "b.example", "10.0.0.1", 80, False),
        ("bücher.example", "bücher.example", "10.0.0.1", 80, True),
        ("xn--bcher-kva.example", "bücher.example", "10.0.0.1", 80, True),
        ("a.example:80", "a.example", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "b.example", "10.0.0.1", 9000, True),
        ("10.0.0.0/8", "b.example", "11.0.0.1", 9000, False),
        ("10.0.0.1", "b.example", "::ffff:10.0.0.1", 80, True),
        ("[fd00::1]", "b.example", "fd00::1", 8080, True),
        ("10.0.0.1", "b.example", "::ffff:127.0.0.1", 80, False),
    ],
)
def test_the_guard_decides_by_name_address_and_port(
    entry: str, host: str, address: str, port: int, allowed: bool
) -> None:
    guard = Guard.from_entries([entry] if entry else [])

    reason = guard.refusal(host, address, port)

    assert (reason is None) == allowed
