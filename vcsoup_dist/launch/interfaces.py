"""Which of this machine's networks leads to another one."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

GET_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h


def interface_to(host: str) -> str | None:
    """Name of the interface from which packets go to `host`, such as `eth0`.

    None where that cannot be told: `host` is this machine or not known here, or has no address
    of IPv4.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, 9))  # sends nothing
            own, other = route.getsockname()[0], route.getpeername()[0]
    except OSError:
        return None
    if own == other or ipaddress.ip_address(own).is_loopback:
        return None
    return next((name for _, name in socket.if_nameindex() if _address_of(name) == own), None)


def _address_of(name: str) -> str | None:
    with (
        suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):  # it has none
        request = struct.pack("256s", name.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(asking.fileno(), GET_ADDRESS, request)[20:24])
    return None
