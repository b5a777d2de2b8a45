"""Passwords as salted scrypt hashes, and how many wrong ones are put up with."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable

WINDOW_S = 60.0  # the time that wrong passwords count for
FOR_A_NAME, FROM_AN_ADDRESS = 5, 50  # wrong ones in that time; an office may share one address


class TooManyTriesError(ValueError):
    """Signing in with this name, or from this address, is blocked for a while."""


class Failures:
    """The wrong passwords of the last minute, by name and by address."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def refuse_if_blocked(self, name: str, address: str | None) -> None:
        """Raise TooManyTriesError after too many for this name, or from this address."""
        limits = {f"name {name}": FOR_A_NAME, f"address {address}": FROM_AN_ADDRESS}
        since = self.clock() - WINDOW_S
        with self._lock:
            for key, most in limits.items():
                if sum(when > since for when in self._times.get(key, [])) >= most:
                    raise TooManyTriesError("too many wrong passwords; try again in a minute")

    def add(self, name: str, address: str | None) -> None:
        """Remember one more, and forget all that are older than the window."""
        now = self.clock()
        with self._lock:
            for key, times in list(self._times.items()):
                recent = [when for when in times if when > now - WINDOW_S]
                if recent:
                    self._times[key] = recent
                else:
                    del self._times[key]
            self._times.setdefault(f"name {name}", []).append(now)
            if address is not None:
                self._times.setdefault(f"address {address}", []).append(now)

    def forget(self, name: str) -> None:
        """A right password ends the counting for its name."""
        with self._lock:
            self._times.pop(f"name {name}", None)


def hash_password(password: str) -> str:
    """A salted scrypt hash (n = 2^14, r = 8, p = 1) as text."""
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${_scrypt(password, salt).hex()}"


def fits(password: str, stored: str | None) -> bool:
    """Whether the password is the one that was hashed; takes as long for no as for yes, and for
    an account without a password or no account (None) as well.
    """
    _, salt, wanted = (stored or _NOBODY).split("$")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(wanted))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=2**14, r=8, p=1)


_NOBODY = hash_password(secrets.token_urlsafe(16))
