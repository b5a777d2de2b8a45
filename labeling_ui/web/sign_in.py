"""How people say who they are: a name, a password, or a proxy in front that vouches for them."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from fastapi import Request

from labeling_ui.store.accounts import Account, Accounts

COOKIE = "labeling_session"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that signs people in and names them in a header of each request.

    The header counts only where the request itself comes from one of `addresses` (hosts or networks
    such as 10.1.0.0/16, of the proxy, never of people); from anywhere else it is as if absent.
    Whom `owners` names has the owner's page. The proxy must remove the header that visitors send.
    """

    header: str = "X-Forwarded-User"
    addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for address in self.addresses:
            try:
                ip_network(address)
            except ValueError:
                raise ValueError(
                    f"proxy address is '{address}', expected an IP address or a network"
                ) from None

    def name(self, request: Request) -> str | None:
        """Whom the proxy names; None where it does not, or somebody else sent the request."""
        given = request.headers.getlist(self.header)
        if request.client is None or len(given) != 1 or not given[0].strip():
            return None
        try:
            sender = ip_address(request.client.host)
        except ValueError:
            return None
        trusted = any(sender in ip_network(address) for address in self.addresses)
        # HTTP headers arrive as Latin-1; proxies write UTF-8.
        return given[0].encode("latin-1", "replace").decode("utf-8", "replace") if trusted else None


Access = Literal["name", "password"] | Proxy


def signed_in(accounts: Accounts, access: Access) -> Callable[[Request], Account | None]:
    """A function that tells whose request it is."""
    if not isinstance(access, Proxy):
        return lambda request: accounts.of_session(request.cookies.get(COOKIE))
    proxy = access

    def vouched_for(request: Request) -> Account | None:
        name = proxy.name(request)
        return None if name is None else accounts.of_proxy(name, is_owner=name in proxy.owners)

    return vouched_for
