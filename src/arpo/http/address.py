"""Addresses that a page may be fetched from: public ones, since a model's URL must not reach this machine, its network
or a cloud's metadata service (server-side request forgery).

Knows addresses and names. Refuses to know HTTP.
"""

import ipaddress
import socket
from collections.abc import Sequence

from arpo.errors import ConfigError, ProviderError, ToolError
from arpo.threads import run_off_loop

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# not public, though some versions of Python call them global: special purposes and cloud metadata, Azure, site-local
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "fec0::/10")))
MOST_TRIED = 3  # addresses of one name
LATER = (socket.EAI_AGAIN, getattr(socket, "EAI_SYSTEM", None))  # the resolver fails, whatever the name


def networks(allowed: Sequence[str]) -> tuple[Network, ...]:
    """`allowed` ("127.0.0.1", "10.0.0.0/8") as networks. Raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(each, strict=False) for each in allowed)
    except (ValueError, TypeError) as error:
        hint = "Addresses or networks: 127.0.0.1, 10.0.0.0/8"
        raise ConfigError(str(error), where="allow_private", value=list(allowed), hint=hint) from error


def is_public(address: Address) -> bool:
    """True for an address that the whole internet can reach. An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo,
    NAT64) must be public too."""
    if isinstance(address, ipaddress.IPv6Address):
        inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        carried = [each for each in inside if each is not None]
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if not all(map(is_public, carried)):
            return False
    if any(address in network for network in NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int, allowed: Sequence[Network] = ()) -> list[str]:
    """The addresses of `host`, IPv4 first. Connect to these, so that no second look-up returns others (DNS rebinding).

    Raises ToolError for a name that does not exist, or that has an address which is neither public nor in `allowed`.
    """
    try:
        found = await run_off_loop(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in LATER:
            raise ProviderError(f"names cannot be looked up now ({error.strerror})", provider="page") from None
        raise ToolError(f"there is no host {host!r}") from None
    except (UnicodeError, OSError, ValueError):
        raise ToolError(f"{host!r} is no host") from None
    addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    for address in addresses:
        plain = getattr(address, "ipv4_mapped", None) or address
        if not is_public(address) and not any(plain in network for network in allowed):
            raise ToolError(f"{host} is not on the public internet: not opened")
    unique = dict.fromkeys(sorted(addresses, key=lambda address: address.version))
    return [str(address) for address in unique][:MOST_TRIED]
