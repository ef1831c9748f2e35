"""A temporary PostgreSQL cluster: created by the installed initdb, on loopback only, deleted afterwards.

https://www.postgresql.org/docs/current/app-initdb.html, https://www.postgresql.org/docs/current/server-shutdown.html
"""

import os
import pwd
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from tests.support.missing_tool import NoTool
from tests.support.ports import free_port
from tests.support.waiting import HUNG_SECONDS

HOW_TO_GET_IT: Final = (
    "needs PostgreSQL 15 or later: apt-get install postgresql, or a superuser's URL in CASELOAD_TEST_POSTGRES_URL"
)
DEBIAN: Final = Path("/usr/lib/postgresql")
"""Debian installs the programs here, outside PATH, with one folder per version."""
QUICK: Final = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "200",
    "max_wal_senders": "0",
    "shared_buffers": "64MB",
    "synchronous_commit": "off",
    "wal_level": "minimal",
}
"""Settings for tests that do not simulate a power loss."""
SAFE: Final = {"max_connections": "200", "wal_keep_size": "256MB"}
"""Settings for tests of durability: commits are synced, and a standby finds the WAL it missed."""
HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 5432
_MODES: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_OLDEST_VERSION: Final = 15


class NoPostgres(NoTool):
    """No usable PostgreSQL is installed."""


def programs() -> Path:
    """The folder of the newest installed initdb and postgres. Raises NoPostgres."""
    for initdb in _candidates():
        folder = initdb.resolve().parent  # a link on PATH may lack the other programs
        if (folder / "initdb").exists() and (folder / "postgres").exists() and _version(folder) >= _OLDEST_VERSION:
            return folder
    raise NoPostgres(HOW_TO_GET_IT)


@cache
def _version(folder: Path) -> int:
    """Parses the major version from a line such as `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`."""
    output = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=HUNG_SECONDS
    )
    return int(re.split(r"\D+", output.stdout.partition(") ")[2])[0])


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("initdb"):
        yield Path(on_path)
    yield from sorted(DEBIAN.glob("*/bin/initdb"), key=lambda initdb: int(initdb.parts[-3]), reverse=True)
    if shutil.which("pg_config"):
        output = subprocess.run(
            ["pg_config", "--bindir"], capture_output=True, text=True, check=True, timeout=HUNG_SECONDS
        )
        yield Path(output.stdout.strip(), "initdb")


class Server:
    """A running PostgreSQL, with a user who may create databases."""

    def __init__(self, url: str) -> None:
        """Args: url, of any database on the server, without parameters."""
        parts = urlsplit(url)
        self._url = parts if parts.port else parts._replace(netloc=f"{parts.netloc}:{DEFAULT_PORT}")

    def url(self, database: str = "postgres") -> str:
        """The URL for a driver and for `--database`."""
        return self._url._replace(path=f"/{database}").geturl()

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[Any, ...]]":
        """Opens a connection in autocommit mode."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=int(HUNG_SECONDS))

    def create_database(self, name: str, template: str = "template0") -> str:
        """Creates a database and returns its URL. FILE_COPY is faster for a small one (measured)."""
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drops a database, even if clients are connected."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    @contextmanager
    def role(self, url: str, attributes: str = "") -> Iterator[str]:
        """Creates a role with the privileges on all tables of a database; drops it at the end of the with block.

        Args: url, of the database; attributes, further ones, as of CREATE ROLE. Yields the URL for the role, which has
        the same password. https://www.postgresql.org/docs/current/sql-createrole.html
        """
        parts, name = urlsplit(url), f"caseload_test_role_{secrets.token_hex(4)}"
        password = None if parts.password is None else unquote(parts.password)
        with self.connect(parts.path.removeprefix("/")) as admin:
            created = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}")
            admin.execute(created.format(sql.Identifier(name), sql.Literal(password), sql.SQL(attributes)))
            try:
                admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}".encode())
                userinfo, _, host = parts.netloc.rpartition("@")
                _, colon, encoded = userinfo.partition(":")
                yield parts._replace(netloc=f"{name}{colon}{encoded}@{host}").geturl()
            finally:
                admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


class Cluster(Server):
    """A PostgreSQL with one superuser, postgres, without a password; it runs within a with block."""

    def __init__(self, settings: dict[str, str], primary: "Cluster | None" = None) -> None:
        """Args: settings, as in postgresql.conf; primary, the cluster to replicate. Raises NoPostgres."""
        self._programs = programs()
        self._settings = settings
        self._primary = primary
        self._user = not_root()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        super().__init__(f"postgresql://postgres@{HOST}:{self.port}")

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="caseload-postgres-", dir=temporary_folder(self._user)))
        try:
            if self._user:
                os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            self._make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _make(self) -> None:
        if self._primary:
            self._run("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", self._primary.url())
            return
        # A linguistic locale, so that byte order comes only from COLLATE "C" in our schema.
        locale = ["--locale=C", "--locale-provider=icu", "--icu-locale=en"]
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", *locale, "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        """Runs a PostgreSQL program on the data folder. Raises RuntimeError with its output."""
        command = self._command(program, *arguments)
        ended = subprocess.run(command, **self._surroundings(), capture_output=True, check=False, timeout=HUNG_SECONDS)
        if ended.returncode:
            raise RuntimeError(f"{program} failed: {ended.stderr.decode(errors='replace')}")

    def _command(self, program: str, *arguments: str) -> list[str]:
        # setpriv changes the user: subprocess would have to fork, which is unsafe with gRPC's threads.
        identity = ["setpriv", "--pdeathsig", "QUIT"]  # it ends with the thread that started it
        if self._user:
            identity += [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return [*identity, str(self._programs / program), "-D", str(self.folder / "data"), *arguments]

    def _surroundings(self) -> dict[str, Any]:
        """Process options: without the caller's PG variables, and unaffected by Ctrl-C in the tests."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return {"cwd": self.folder, "env": environment, "start_new_session": True}

    def start(self) -> None:
        """Starts the cluster on its fixed port and waits until it answers. Raises RuntimeError."""
        settings = {
            **self._settings,
            "dynamic_shared_memory_type": "mmap",  # files in the data folder, deleted with it
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = self._command("postgres", *options)
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, **self._surroundings(), stdout=output, stderr=output)
        deadline = time.monotonic() + HUNG_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether the cluster accepts connections."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, mode: str = "fast") -> None:
        """Stops the cluster: "smart" waits for clients, "fast" shuts down cleanly, "immediate" acts like a crash."""
        if self._process:
            self._process.send_signal(_MODES[mode])
            self._ended()

    def kill(self) -> None:
        """Sends SIGKILL to every process: nothing more is written, and clients get no message."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)  # otherwise it would restart each lost child
            children = [os.pidfd_open(child) for child in self.children()]
            for child in children:
                signal.pidfd_send_signal(child, signal.SIGKILL)
            self._process.kill()
            self._ended()
            for child in children:  # its shared memory exists until the last process has ended
                select.select([child], [], [], HUNG_SECONDS)
                os.close(child)
            *_, memory = (self.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()
            subprocess.run(["ipcrm", "--shmem-id", memory], check=True)  # the next start would do this

    def children(self) -> list[int]:
        """The process ids of its backends and workers. Ids stay valid because a stopped postmaster does not reap."""
        assert self._process
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises AssertionError if it is stopped."""
        assert self._process, "it is stopped"
        return self._process.pid

    def _ended(self) -> None:
        assert self._process
        try:
            self._process.wait(HUNG_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def promote(self) -> None:
        """Promotes a standby and waits until it is the primary."""
        with self.connect() as connection:
            connection.execute("SELECT pg_promote(wait => true, wait_seconds => 30)")

    def stop_following(self) -> None:
        """Stops replication from the primary."""
        self.configure("primary_conninfo", "")

    def configure(self, setting: str, value: str) -> None:
        """Changes a setting of the running cluster."""
        with self.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'".encode())
            connection.execute("SELECT pg_reload_conf()")

    def replicate_synchronously(self) -> None:
        """Acknowledges commits only after a standby has them. Returns when a standby is in sync."""
        self.configure("synchronous_standby_names", "*")
        with self.connect() as connection:
            deadline = time.monotonic() + HUNG_SECONDS
            while not connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").fetchall():
                assert time.monotonic() < deadline, "no standby came"
                time.sleep(0.02)


def not_root() -> pwd.struct_passwd | None:
    """The user to run as instead of root; PostgreSQL rejects root, and container tests often run as root."""
    if os.geteuid():
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def temporary_folder(user: pwd.struct_passwd | None) -> Path:
    """The folder for temporary files; /tmp instead if the user cannot enter that folder. Args: user, of not_root()."""
    folder = Path(tempfile.gettempdir())
    if user and not all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents)):
        return Path("/tmp")
    return folder
