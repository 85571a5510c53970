"""Which addresses belong to the public internet: everything else is somebody's own network."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Written out instead of `is_global`, whose answers differ between Python versions (multicast counts as global).
# Source: the IANA special-purpose address registries.
_CLOSED_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
# Only 2000::/3 is handed out. Outside it: loopback, IPv4-mapped, NAT64 (64:ff9b::/96), unique local, link-local,
# site-local, multicast. Inside it, these carry an IPv4 address or are nobody's.
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
]


def is_public(address: Address) -> bool:
    """True for an address of the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None or address not in _OPEN_V6:
        return False
    return not any(address in network for network in _CLOSED_V6)


def is_neighbour(own: Address, peer: Address) -> bool:
    """True where a connection from `own` to `peer` stays on this machine or, with IPv6, on this network.

    At home, IPv6 addresses are public by their range, and yet the printer's.
    """
    if own == peer:
        return True
    return own.version == 6 and peer.version == 6 and int(own) >> 64 == int(peer) >> 64
