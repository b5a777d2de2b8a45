"""A PostgreSQL server of the tests' own: a fresh cluster in a temporary folder, on a socket there.

It is found in the path or where Debian puts it. PostgreSQL refuses to run as root, so root starts
it as another user.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, text

DEBIAN = Path("/usr/lib/postgresql")
# A cluster that is thrown away need not survive the machine; what is killed here is its client.
HASTE = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off"


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, or None where there are none."""
    initdb = shutil.which("initdb")
    folders = [Path(initdb).resolve().parent] if initdb else []
    folders += sorted(DEBIAN.glob("*/bin"), reverse=True)
    return next((path for path in folders if (path / "pg_ctl").exists()), None)


class PostgresServer:
    """A running cluster with one database for many tests in turn, and more where one needs two."""

    def __init__(self) -> None:
        programs = binaries()
        assert programs is not None
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-", dir="/tmp"))  # short: it is a socket
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Make the cluster and wait until it answers."""
        if os.geteuid() == 0:
            try:
                pwd.getpwnam("postgres")
            except KeyError:
                self.user = "nobody"
            shutil.chown(self.folder, self.user)
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -k {self.folder} {HASTE}"
        self._run("pg_ctl", "-D", data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def emptied(self) -> str:
        """The URL of the database that all tests share; nothing is left in it."""
        url = self._url("postgres")
        admin = create_engine(url)
        with admin.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        admin.dispose()
        return url

    def database(self) -> str:
        """The URL of a new database, empty."""
        name = f"labels_{next(self._numbers)}"
        admin = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.dispose()
        return self._url(name)

    def stop(self) -> None:
        """Stop the cluster and remove it."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        as_user = self.user if os.geteuid() == 0 else None
        # Not through a pipe: the server would keep it open.
        with (self.folder / "set-up.log").open("a") as log:
            subprocess.run(
                [self.programs / program, *arguments],
                check=True,
                cwd=self.folder,
                user=as_user,
                stdout=log,
                stderr=log,
                timeout=120,
            )
