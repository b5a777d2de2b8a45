"""Accounts with hashed passwords, sessions, invitations that work once, and screening verdicts."""

import hashlib
import hmac
import secrets
import threading
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import Connection

from labeling_ui.store.database import delete, dumps, first, insert, run
from labeling_ui.store.store import Store
from reward_models.records import JUDGE

Role = Literal["annotator", "reviewer", "owner"]
SESSION_S = 12 * 3600.0
INVITATION_S = 14 * 24 * 3600.0
CACHE_S = 5.0  # how long a session is not looked up again
NAME_CHARACTERS = 60
PASSWORD_CHARACTERS = 8
WINDOW_S = 60.0  # the time for which wrong passwords count
# Wrong ones in that time: for a name from one address, so that nobody can lock another out from
# elsewhere; and from an address for all names, since an office may share one.
FOR_A_NAME, FROM_AN_ADDRESS = 5, 50

# OWASP's parameters: 19 MiB each, since a morning's sign-ins come at once.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class Account:
    """A person. `daily_limit` is in answers a day, None for no limit; a closed one is inactive."""

    name: str
    role: Role
    daily_limit: int | None = None
    is_active: bool = True


class TooManyTriesError(ValueError):
    """Signing in from this address, with this name or any, is blocked for a while."""


class FailedAttempts:
    """The wrong passwords of the last minute, by name and by address."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._attempts: list[tuple[float, str, str | None]] = []
        self._lock = threading.Lock()

    def check(self, name: str, address: str | None) -> None:
        """Raise TooManyTriesError after too many from this address, for this name or in all."""
        since = self.clock() - WINDOW_S
        with self._lock:
            self._attempts = [attempt for attempt in self._attempts if attempt[0] > since]
            from_here = [attempt[1] for attempt in self._attempts if attempt[2] == address]
        num_name, num_address = from_here.count(name), len(from_here)
        if num_name >= FOR_A_NAME or (address is not None and num_address >= FROM_AN_ADDRESS):
            raise TooManyTriesError("too many wrong passwords; try again in a minute")

    def add(self, name: str, address: str | None) -> None:
        """Count one more."""
        with self._lock:
            self._attempts.append((self.clock(), name, address))

    def forget(self, name: str, address: str | None) -> None:
        """Stop counting for a name whose password came from there; the address still counts."""
        with self._lock:
            self._attempts = [
                (time, "" if (other, where) == (name, address) else other, where)
                for time, other, where in self._attempts
            ]


class Accounts:
    """Accounts, sessions and invitations of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._cache: dict[str, tuple[float, Account | None]] = {}
        self._failures = FailedAttempts(lambda: store.clock())

    def ensure_owner(self) -> str | None:
        """Make the account `owner` if there is none; return its password, to be shown once."""
        password = secrets.token_urlsafe(9)
        with self.store.database.write() as connection:
            if first(connection, "accounts", role="owner"):
                return None
            self._insert(connection, "owner", "owner", password)
        return password

    def add(self, name: str, role: Role, password: str | None = None) -> Account:
        """Add an account; ValueError if the name is taken or no name, or the password too short."""
        name = _checked(name, password)
        with self.store.database.write() as connection:
            self._insert(connection, name, role, password)
        return Account(name, role)

    def all(self) -> list[Account]:
        """Return all accounts, closed ones too, by name."""
        with self.store.database.read() as connection:
            return [
                _account(row) for row in run(connection, "SELECT * FROM accounts ORDER BY name")
            ]

    def get(self, name: str) -> Account:
        """Return the account of a name; ValueError if there is none."""
        with self.store.database.read() as connection:
            row = first(connection, "accounts", name=name)
        if row is None:
            raise ValueError(f"there is no account '{name}'")
        return _account(row)

    def reset_password(self, name: str, by: str = "store") -> str:
        """Return a new password of an account, to be shown once; its sessions end."""
        password = secrets.token_urlsafe(9)
        self.get(name)
        with self.store.database.write() as connection:
            sql = "UPDATE accounts SET password = :password WHERE name = :name"
            run(connection, sql, name=name, password=hash_password(password))
            delete(connection, "sessions", account=name)
            self.store.log(connection, by, "password reset", None, {"account": name})
        self._cache.clear()
        return password

    def change(
        self, name: str, *, active: bool, daily_limit: int | None, by: str = "store"
    ) -> None:
        """Open or close an account, and set how many answers a day it may give."""
        values = {"is_active": int(active), "daily_limit": daily_limit}
        with self.store.database.write() as connection:
            sql = """UPDATE accounts SET is_active = :is_active, daily_limit = :daily_limit
                     WHERE name = :name"""
            run(connection, sql, name=name, **values)
            if not active:
                delete(connection, "sessions", account=name)
            self.store.log(connection, by, "account changed", None, {"account": name, **values})
        self._cache.clear()

    def admit(self, annotator: str, owner: str) -> None:
        """Let a person work on whatever the screening found."""
        with self.store.database.write() as connection:
            now_s = self.store.clock()
            record_verdict(connection, annotator, "admitted", {"by": owner}, now_s)
            self.store.log(connection, owner, "admitted", None, {"account": annotator})

    def sign_in(self, name: str, password: str, address: str | None = None) -> str | None:
        """Return a session token, or None if name and password do not fit.

        TooManyTriesError after five wrong passwords for this name from this address within a
        minute, or fifty from this address in all.
        """
        name = clean_name(name)
        self._failures.check(name, address)
        with self.store.database.read() as connection:
            row = first(connection, "accounts", name=name)
        stored = row.password if row is not None and row.is_active else None
        if not is_password(password, stored):
            self._failures.add(name, address)
            return None
        self._failures.forget(name, address)
        if stored is not None and (
            stored.startswith("scrypt$") or _hasher.check_needs_rehash(stored)
        ):
            with self.store.database.write() as connection:
                sql = "UPDATE accounts SET password = :password WHERE name = :name"
                run(connection, sql, name=name, password=hash_password(password))
        return self.open_session(name)

    def sign_in_by_name(self, name: str) -> str | None:
        """Return a session for a name alone, made if new; None if the name has a password."""
        name = clean_name(name)
        with self.store.database.write() as connection:
            row = first(connection, "accounts", name=name)
            if row is not None and (row.password is not None or not row.is_active):
                return None
            if row is None:
                self._insert(connection, name, "annotator", None)
        return self.open_session(name)

    def open_session(self, name: str) -> str:
        """Return a new session token of an account; only its hash is stored."""
        token, now_s = secrets.token_urlsafe(32), self.store.clock()
        row = {"token_hash": _hash(token), "account": name, "expires": now_s + SESSION_S}
        with self.store.database.write() as connection:
            run(connection, "DELETE FROM sessions WHERE expires < :now", now=now_s)
            insert(connection, "sessions", row)
            self.store.log(connection, name, "sign in", None, {})
        return token

    def of_session(self, token: str | None) -> Account | None:
        """Return the account of a session, if there is one; cached for a few seconds."""
        if not token:
            return None
        now_s, key = self.store.clock(), _hash(token)
        end, account = self._cache.get(key, (0.0, None))
        if end > now_s:
            return account
        sql = """SELECT a.* FROM accounts a JOIN sessions s ON s.account = a.name
                 WHERE s.token_hash = :key AND s.expires > :now AND a.is_active = 1"""
        with self.store.database.read() as connection:
            row = run(connection, sql, key=key, now=now_s).first()
        return self._remember(key, None if row is None else _account(row))

    def of_proxy(self, name: str, *, is_owner: bool) -> Account | None:
        """Return the account of a name that a trusted proxy gave, made if new.

        None if it is closed, or no name. Cached for a few seconds.
        """
        key = f"proxy/{is_owner}/{name}"
        end, account = self._cache.get(key, (0.0, None))
        if end > self.store.clock():
            return account
        try:
            name = clean_name(name)
        except ValueError:
            return self._remember(key, None)
        with self.store.database.read() as connection:
            row = first(connection, "accounts", name=name)
        if row is None or (is_owner and row.role != "owner"):
            with self.store.database.write() as connection:  # another request may have come first
                if first(connection, "accounts", name=name) is None:
                    self._insert(connection, name, "owner" if is_owner else "annotator", None)
                elif is_owner:
                    sql = "UPDATE accounts SET role = 'owner' WHERE name = :name"
                    run(connection, sql, name=name)
                    self.store.log(connection, "proxy", "made owner", None, {"account": name})
                row = first(connection, "accounts", name=name)
        assert row is not None
        return self._remember(key, _account(row) if row.is_active else None)

    def _remember(self, key: str, account: Account | None) -> Account | None:
        if len(self._cache) > 10_000:
            self._cache.clear()
        self._cache[key] = (self.store.clock() + CACHE_S, account)
        return account

    def sign_out(self, token: str) -> None:
        """End a session."""
        with self.store.database.write() as connection:
            delete(connection, "sessions", token_hash=_hash(token))
        self._cache.pop(_hash(token), None)

    def invite(self, role: Role, by: str = "store") -> str:
        """Return a token that lets one person make an account of this role within two weeks."""
        token, expires = secrets.token_urlsafe(18), self.store.clock() + INVITATION_S
        row = {"token_hash": _hash(token), "role": role, "expires": expires, "used_by": None}
        with self.store.database.write() as connection:
            insert(connection, "invitations", row)
            self.store.log(connection, by, "invited", None, {"role": role})
        return token

    def accept(self, token: str, name: str, password: str) -> str:
        """Make the invited account and sign it in; ValueError if the invitation is used or old."""
        name, key = _checked(name, password), _hash(token)
        with self.store.database.write() as connection:  # of two who accept at once, one is late
            row = first(connection, "invitations", token_hash=key)
            if row is None or row.used_by is not None or row.expires < self.store.clock():
                raise ValueError("this invitation was used already, or is too old")
            self._insert(connection, name, row.role, password)
            sql = "UPDATE invitations SET used_by = :name WHERE token_hash = :key"
            run(connection, sql, key=key, name=name)
        return self.open_session(name)

    def _insert(self, connection: Connection, name: str, role: Role, password: str | None) -> None:
        if first(connection, "accounts", name=name) is not None:
            raise ValueError(f"the name '{name}' is taken")
        hashed = None if password is None else hash_password(password)
        row = {"name": name, "role": role, "password": hashed, "is_active": 1}
        insert(connection, "accounts", {**row, "time": self.store.clock()})
        self.store.log(connection, name, "account made", None, {"role": role})


def verdict_of(connection: Connection, annotator: str) -> str | None:
    """Return 'passed', 'failed' or 'admitted'; None before the screening is done."""
    row = first(connection, "screenings", annotator=annotator)
    return None if row is None else str(row.verdict)


def verdicts(connection: Connection) -> dict[str, str]:
    """Return the screening's verdicts by annotator."""
    rows = run(connection, "SELECT annotator, verdict FROM screenings")
    return {row.annotator: row.verdict for row in rows}


def record_verdict(
    connection: Connection, annotator: str, verdict: str, data: Mapping[str, Any], now_s: float
) -> None:
    """Write a verdict in place of an earlier one."""
    delete(connection, "screenings", annotator=annotator)
    row = {"annotator": annotator, "verdict": verdict, "data": dumps(data), "time": now_s}
    insert(connection, "screenings", row)


def clean_name(name: str) -> str:
    """Return a name as it is stored; ValueError if empty, too long or with control characters."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > NAME_CHARACTERS:
        raise ValueError(f"a name has 1 to {NAME_CHARACTERS} characters")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        raise ValueError("a name holds no control or invisible characters")
    if name.startswith(JUDGE):
        raise ValueError(f"a name that begins with '{JUDGE}' is a model's")
    return name


def hash_password(password: str) -> str:
    """Return a salted Argon2id hash as text."""
    return _hasher.hash(_bytes(password))


def is_password(password: str, stored: str | None) -> bool:
    """Check a password against a hash; no account (None) takes as long as a wrong password.

    Hashes of version 0.1 (`scrypt$salt$hash`) still count.
    """
    if stored is not None and stored.startswith("scrypt$"):
        _, salt, expected = stored.split("$")
        made = hashlib.scrypt(_bytes(password), salt=bytes.fromhex(salt), n=2**14, r=8, p=1)
        return hmac.compare_digest(made, bytes.fromhex(expected))
    try:
        return _hasher.verify(stored or _NO_ACCOUNT, _bytes(password))
    except VerifyMismatchError:
        return False


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "replace")


def _account(row: Any) -> Account:
    return Account(row.name, row.role, row.daily_limit, bool(row.is_active))


def _checked(name: str, password: str | None) -> str:
    if password is not None and len(password) < PASSWORD_CHARACTERS:
        raise ValueError(f"a password has at least {PASSWORD_CHARACTERS} characters")
    return clean_name(name)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


_NO_ACCOUNT = hash_password(secrets.token_urlsafe(16))
