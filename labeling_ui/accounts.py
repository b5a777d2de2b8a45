"""Who may come in: accounts with hashed passwords, sessions, and invitations that work once."""

import hashlib
import hmac
import secrets
import threading
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, delete, insert, select, update

from labeling_ui.store import Store
from labeling_ui.tables import accounts, invitations, sessions

Role = Literal["annotator", "reviewer", "owner"]
SESSION_S = 12 * 3600.0
INVITATION_S = 14 * 24 * 3600.0
TRUST_S = 5.0  # how long a session that was looked up is not looked up again
FAILURES, FAILURES_S = 5, 60.0  # wrong passwords for one name, and the time they count for
NAME_CHARACTERS = 60
PASSWORD_CHARACTERS = 8


class TooManyTriesError(ValueError):
    """Signing in with this name is blocked for a while."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person. `daily_limit` is in answers a day, None for no limit."""

    name: str
    role: Role
    daily_limit: int | None = None


class Accounts:
    """Accounts, sessions and invitations of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._trusted: dict[str, tuple[float, Account | None]] = {}
        self._failures: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def ensure_owner(self) -> str | None:
        """Make the account `owner` if there is none; return its password, to be shown once."""
        password = secrets.token_urlsafe(9)
        with self.store.database.write() as connection:
            if connection.execute(select(accounts).where(accounts.c.role == "owner")).first():
                return None
            self._insert(connection, "owner", "owner", password)
        return password

    def add(self, name: str, role: Role, password: str | None = None) -> Account:
        """Add an account; ValueError if the name is taken or no name, or the password too short."""
        name = clean_name(name)
        if role not in get_args(Role):
            raise ValueError(f"role is '{role}', expected one of {', '.join(get_args(Role))}")
        if password is not None and len(password) < PASSWORD_CHARACTERS:
            raise ValueError(f"a password has at least {PASSWORD_CHARACTERS} characters")
        with self.store.database.write() as connection:
            if connection.execute(select(accounts).where(accounts.c.name == name)).first():
                raise ValueError(f"the name '{name}' is taken")
            self._insert(connection, name, role, password)
        return Account(name, role)

    def names(self) -> list[Account]:
        """All active accounts, by name."""
        active = select(accounts).where(accounts.c.is_active == 1).order_by(accounts.c.name)
        with self.store.database.read() as connection:
            rows = connection.execute(active).all()
        return [Account(row.name, row.role, row.daily_limit) for row in rows]

    def change(self, name: str, *, active: bool, daily_limit: int | None) -> None:
        """Set whether an account may come in, and how many answers a day it may give."""
        values = {"is_active": int(active), "daily_limit": daily_limit}
        with self.store.database.write() as connection:
            connection.execute(update(accounts).where(accounts.c.name == name).values(**values))
            if not active:
                connection.execute(delete(sessions).where(sessions.c.account == name))
            self.store.log(connection, name, "account changed", None, values)
        self._trusted.clear()

    def sign_in(self, name: str, password: str) -> str | None:
        """A session token, or None if name and password do not fit.

        TooManyTriesError after five wrong passwords within a minute.
        """
        name = clean_name(name)
        self._refuse_if_blocked(name)
        with self.store.database.read() as connection:
            mine = select(accounts).where(accounts.c.name == name, accounts.c.is_active == 1)
            row = connection.execute(mine).first()
        stored = row.password if row is not None and row.password else _NOBODY
        if not fits(password, stored):
            with self._lock:
                self._failures.setdefault(name, []).append(self.store.clock())
            return None
        with self._lock:
            self._failures.pop(name, None)
        return self.open_session(name)

    def sign_in_by_name(self, name: str) -> str | None:
        """A session for a name alone, made if new; None if the name is kept by a password."""
        name = clean_name(name)
        with self.store.database.write() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == name)).first()
            if row is not None and (row.password is not None or not row.is_active):
                return None
            if row is None:
                self._insert(connection, name, "annotator", None)
        return self.open_session(name)

    def open_session(self, name: str) -> str:
        """A new session token of an account; only its hash is stored."""
        token, now = secrets.token_urlsafe(32), self.store.clock()
        row = {"token_hash": _hash(token), "account": name, "expires": now + SESSION_S}
        with self.store.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires < now))
            connection.execute(insert(sessions).values(**row))
            self.store.log(connection, name, "sign in", None, {})
        return token

    def of_session(self, token: str | None) -> Account | None:
        """Whose session this is, or None. Remembered for a few seconds."""
        if not token:
            return None
        now, key = self.store.clock(), _hash(token)
        until, account = self._trusted.get(key, (0.0, None))
        if until > now:
            return account
        query = select(accounts).join(sessions, sessions.c.account == accounts.c.name)
        query = query.where(sessions.c.token_hash == key, sessions.c.expires > now)
        with self.store.database.read() as connection:
            row = connection.execute(query.where(accounts.c.is_active == 1)).first()
        account = None if row is None else Account(row.name, row.role, row.daily_limit)
        if len(self._trusted) > 10_000:
            self._trusted.clear()
        self._trusted[key] = (now + TRUST_S, account)
        return account

    def sign_out(self, token: str) -> None:
        """End a session."""
        with self.store.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.token_hash == _hash(token)))
        self._trusted.pop(_hash(token), None)

    def invite(self, role: Role) -> str:
        """A token that lets one person make an account of this role within two weeks."""
        token, expires = secrets.token_urlsafe(18), self.store.clock() + INVITATION_S
        row = {"token_hash": _hash(token), "role": role, "expires": expires, "used_by": None}
        with self.store.database.write() as connection:
            connection.execute(insert(invitations).values(**row))
        return token

    def accept(self, token: str, name: str, password: str) -> str:
        """Make the invited account and sign it in; ValueError if the invitation is used or old."""
        is_good = (invitations.c.token_hash == _hash(token)) & invitations.c.used_by.is_(None)
        with self.store.database.read() as connection:
            row = connection.execute(select(invitations).where(is_good)).first()
        if row is None or row.expires < self.store.clock():
            raise ValueError("this invitation was used already, or is too old")
        account = self.add(name, row.role, password)
        with self.store.database.write() as connection:
            taken = update(invitations).where(is_good).values(used_by=account.name)
            connection.execute(taken)
        return self.open_session(account.name)

    def _insert(self, connection: Connection, name: str, role: Role, password: str | None) -> None:
        hashed = None if password is None else hash_password(password)
        row = {"name": name, "role": role, "password": hashed, "is_active": 1}
        connection.execute(insert(accounts).values(**row, time=self.store.clock()))
        self.store.log(connection, name, "account made", None, {"role": role})

    def _refuse_if_blocked(self, name: str) -> None:
        since = self.store.clock() - FAILURES_S
        with self._lock:
            recent = [when for when in self._failures.get(name, []) if when > since]
            self._failures[name] = recent
        if len(recent) >= FAILURES:
            raise TooManyTriesError("too many wrong passwords; try again in a minute")


def clean_name(name: str) -> str:
    """A name as it is stored; ValueError if it is empty, too long or holds control characters."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > NAME_CHARACTERS:
        raise ValueError(f"a name has 1 to {NAME_CHARACTERS} characters")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        raise ValueError("a name holds no control or invisible characters")
    return name


def hash_password(password: str) -> str:
    """A salted scrypt hash (n = 2^14, r = 8, p = 1) as text."""
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${_scrypt(password, salt).hex()}"


def fits(password: str, stored: str) -> bool:
    """Whether the password is the one that was hashed; takes as long for no as for yes."""
    _, salt, wanted = stored.split("$")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(wanted))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=2**14, r=8, p=1)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


_NOBODY = hash_password(secrets.token_urlsafe(16))
