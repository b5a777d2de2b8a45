"""Through which network interface a host reaches the others, for gloo, which otherwise guesses.

Its guess is the address of the host's own name, often 127.0.0.1, where no other host finds it.
"""

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping

SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface
VARIABLE = "GLOO_SOCKET_IFNAME"


def told_to_gloo(address: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What ranks are told, so that they meet at this machine's `address`; nothing if they know."""
    if VARIABLE in environment or sys.platform != "linux":
        return {}
    name = interface_of(address)
    return {} if name is None else {VARIABLE: name}


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                packed = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, packed)[20:24]
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return None
