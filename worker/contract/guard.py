"""Where requests for a URL that a user wrote may go: the rules of addresses, names and ports.

The rules only. `outbound` asks them about the very address that a socket is about to connect to;
whoever takes a URL in asks them once before, to refuse at once what can never work.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from yarl import URL

PUBLIC_PORTS = frozenset({80, 443})

# Global by the registry's letter, yet inside somebody's network: cloud metadata, protocol
# assignments, and IPv6 forms that carry an IPv4 address to which a gateway would go.
_NEVER_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "::/96",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/32",
            "2002::/16",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Guard:
    """Where requests may go: public addresses on ports 80 and 443, and what was allowed by name.

    An allowed host name may lead to any address and port, but only under that name; an allowed
    address or network may be reached under any name and on any port.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_entries(cls, entries: Iterable[str]) -> Self:
        """Build a guard from the entries of an …_ALLOW_HOSTS setting: names, addresses, CIDRs."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                hosts.add(_plain_host(_written_out(entry)))
        return cls(frozenset(hosts), tuple(networks))

    def refusal(self, host: str, address: str, port: int) -> str | None:
        """Return why a connection to `address`, reached under the name `host`, must not be made."""
        number = _plain_address(address)
        if _plain_host(host) in self.hosts or any(number in network for network in self.networks):
            return None
        if not is_public(number):
            return "its address is not public"
        if port not in PUBLIC_PORTS:
            return f"port {port} is not allowed"
        return None

    def refusal_of_literal(self, host: str, port: int) -> str | None:
        """Return why a host written as an address is refused; None for one, and for any name."""
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None
        return self.refusal(host, host, port)


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the open internet and to nobody's inside.

    `ipaddress.is_global` alone lets multicast, NAT64, 6to4 and cloud metadata addresses through.
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NEVER_PUBLIC)


def plain_url(text: str) -> URL:
    """Read a URL that a user wrote, without its fragment.

    Raises:
        ValueError: another scheme than http and https, user information, or characters that two
            parsers may read differently (space, control, backslash); the text is for the user.
    """
    if any(ord(char) <= ord(" ") or char in "\\\x7f" for char in text):
        raise ValueError("the URL has a space, a control character or a backslash in it")
    try:
        url = URL(text)
        host, port = url.host, url.port  # a name in punycode is read only here
    except ValueError as error:
        raise ValueError("the URL cannot be read") from error
    if url.scheme not in {"http", "https"} or not host or not port:
        raise ValueError("the URL must begin with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise ValueError("the URL must not carry a user name or password")
    return url.with_fragment(None)


def _written_out(name: str) -> str:
    """Return a name as a URL's `host` has it, punycode read; what is no name stays, for nothing."""
    try:
        return URL.build(scheme="http", host=name).host or name
    except ValueError:
        return name


def _plain_host(host: str) -> str:
    return host.rstrip(".").lower()


def _plain_address(text: str) -> Address:
    """Return an address without its zone, and as IPv4 where IPv6 only wraps one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
