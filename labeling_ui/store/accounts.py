"""Who may come in: accounts with hashed passwords, sessions, and invitations that work once."""

import hashlib
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, delete, insert, select, update

from labeling_ui.store.passwords import Failures, fits, hash_password
from labeling_ui.store.store import Store
from labeling_ui.store.tables import accounts, invitations, sessions

Role = Literal["annotator", "reviewer", "owner"]
SESSION_S = 12 * 3600.0
INVITATION_S = 14 * 24 * 3600.0
TRUST_S = 5.0  # how long a session that was looked up is not looked up again
NAME_CHARACTERS = 60
PASSWORD_CHARACTERS = 8


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
        self._failures = Failures(lambda: store.clock())

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
        name = _checked(name, password)
        if role not in get_args(Role):
            raise ValueError(f"role is '{role}', expected one of {', '.join(get_args(Role))}")
        with self.store.database.write() as connection:
            self._insert(connection, name, role, password)
        return Account(name, role)

    def names(self) -> list[Account]:
        """All active accounts, by name."""
        active = select(accounts).where(accounts.c.is_active == 1).order_by(accounts.c.name)
        with self.store.database.read() as connection:
            rows = connection.execute(active).all()
        return [Account(row.name, row.role, row.daily_limit) for row in rows]

    def change(
        self, name: str, *, active: bool, daily_limit: int | None, by: str = "store"
    ) -> None:
        """Set whether an account may come in, and how many answers a day it may give."""
        values = {"is_active": int(active), "daily_limit": daily_limit}
        with self.store.database.write() as connection:
            connection.execute(update(accounts).where(accounts.c.name == name).values(**values))
            if not active:
                connection.execute(delete(sessions).where(sessions.c.account == name))
            self.store.log(connection, by, "account changed", None, {"account": name, **values})
        self._trusted.clear()

    def sign_in(self, name: str, password: str, address: str | None = None) -> str | None:
        """A session token, or None if name and password do not fit.

        TooManyTriesError after five wrong passwords for this name within a minute, or fifty from
        this address.
        """
        name = clean_name(name)
        self._failures.refuse_if_blocked(name, address)
        with self.store.database.read() as connection:
            mine = select(accounts).where(accounts.c.name == name, accounts.c.is_active == 1)
            row = connection.execute(mine).first()
        if not fits(password, None if row is None else row.password):
            self._failures.add(name, address)
            return None
        self._failures.forget(name)
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
        self._remember(key, account)
        return account

    def of_proxy(self, name: str, *, is_owner: bool) -> Account | None:
        """The account of a name that a trusted proxy gave, made if new; None if it is closed, or
        no name. Remembered for a few seconds.
        """
        now, key = self.store.clock(), f"proxy/{is_owner}/{name}"
        until, account = self._trusted.get(key, (0.0, None))
        if until > now:
            return account
        try:
            account = self._vouched_for(clean_name(name), is_owner=is_owner)
        except ValueError:
            account = None
        self._remember(key, account)
        return account

    def _vouched_for(self, name: str, *, is_owner: bool) -> Account | None:
        query = select(accounts).where(accounts.c.name == name)
        with self.store.database.read() as connection:
            row = connection.execute(query).first()
        if row is None or (is_owner and row.role != "owner"):
            with self.store.database.write() as connection:
                self._welcome(connection, name, is_owner=is_owner)
                row = connection.execute(query).one()
        return Account(row.name, row.role, row.daily_limit) if row.is_active else None

    def _welcome(self, connection: Connection, name: str, *, is_owner: bool) -> None:
        """Make the account of a name that a proxy gave, or make it an owner's."""
        mine = accounts.c.name == name
        if connection.execute(select(accounts).where(mine)).first() is None:
            self._insert(connection, name, "owner" if is_owner else "annotator", None)
        elif is_owner:
            connection.execute(update(accounts).where(mine).values(role="owner"))
            self.store.log(connection, "proxy", "made owner", None, {"account": name})

    def _remember(self, key: str, account: Account | None) -> None:
        if len(self._trusted) > 10_000:
            self._trusted.clear()
        self._trusted[key] = (self.store.clock() + TRUST_S, account)

    def sign_out(self, token: str) -> None:
        """End a session."""
        with self.store.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.token_hash == _hash(token)))
        self._trusted.pop(_hash(token), None)

    def invite(self, role: Role, by: str = "store") -> str:
        """A token that lets one person make an account of this role within two weeks."""
        token, expires = secrets.token_urlsafe(18), self.store.clock() + INVITATION_S
        row = {"token_hash": _hash(token), "role": role, "expires": expires, "used_by": None}
        with self.store.database.write() as connection:
            connection.execute(insert(invitations).values(**row))
            self.store.log(connection, by, "invited", None, {"role": role})
        return token

    def accept(self, token: str, name: str, password: str) -> str:
        """Make the invited account and sign it in; ValueError if the invitation is used or old."""
        name = _checked(name, password)
        mine = invitations.c.token_hash == _hash(token)
        with self.store.database.write() as connection:  # of two who accept at once, one is late
            row = connection.execute(select(invitations).where(mine)).first()
            if row is None or row.used_by is not None or row.expires < self.store.clock():
                raise ValueError("this invitation was used already, or is too old")
            self._insert(connection, name, row.role, password)
            connection.execute(update(invitations).where(mine).values(used_by=name))
        return self.open_session(name)

    def _insert(self, connection: Connection, name: str, role: Role, password: str | None) -> None:
        if connection.execute(select(accounts).where(accounts.c.name == name)).first():
            raise ValueError(f"the name '{name}' is taken")
        hashed = None if password is None else hash_password(password)
        row = {"name": name, "role": role, "password": hashed, "is_active": 1}
        connection.execute(insert(accounts).values(**row, time=self.store.clock()))
        self.store.log(connection, name, "account made", None, {"role": role})


def clean_name(name: str) -> str:
    """A name as it is stored; ValueError if it is empty, too long or holds control characters."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > NAME_CHARACTERS:
        raise ValueError(f"a name has 1 to {NAME_CHARACTERS} characters")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        raise ValueError("a name holds no control or invisible characters")
    return name


def _checked(name: str, password: str | None) -> str:
    if password is not None and len(password) < PASSWORD_CHARACTERS:
        raise ValueError(f"a password has at least {PASSWORD_CHARACTERS} characters")
    return clean_name(name)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
