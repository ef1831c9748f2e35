"""A PgBouncer in front of a PostgreSQL of the tests, on loopback only. https://www.pgbouncer.org/config.html"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

import psycopg

from tests.support.missing_tool import NoTool
from tests.support.ports import free_port
from tests.support.postgres.cluster import HOST, not_root, temporary_folder
from tests.support.waiting import HUNG_SECONDS

HOW_TO_GET_IT: Final = "needs PgBouncer: apt-get install pgbouncer"
_DEBIAN: Final = "/usr/sbin"
"""Debian installs the program here, which is outside PATH for most users."""


@contextmanager
def pgbouncer(url: str, pool_mode: Literal["session", "transaction", "statement"], more: str = "") -> Iterator[str]:
    """Yields the URL of the same database through PgBouncer. Raises NoTool.

    Args: url, of a database; more, further lines of its configuration.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:{_DEBIAN}")
    if program is None:
        raise NoTool(HOW_TO_GET_IT)
    behind, port, user = urlsplit(url), free_port(), not_root()
    database = f"* = host={behind.hostname} port={behind.port} user={behind.username}"
    if behind.password:
        database += " password='{}'".format(unquote(behind.password).replace("'", "''"))
    with tempfile.TemporaryDirectory(prefix="caseload-pgbouncer-", dir=temporary_folder(user)) as name:
        folder = Path(name)
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n{database}\n[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {pool_mode}\n{more}\n"
        )
        identity = ["setpriv", "--pdeathsig", "TERM"]
        if user:
            folder.chmod(0o755)
            identity += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*identity, program, str(configuration)], stdout=log, stderr=log, cwd=folder)
        pooled = behind._replace(netloc=f"{behind.username}@{HOST}:{port}").geturl()
        try:
            _await(pooled, process, folder / "log")
            yield pooled
        finally:
            process.send_signal(signal.SIGTERM)  # at once: it does not wait for clients
            process.wait(HUNG_SECONDS)


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + HUNG_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=int(HUNG_SECONDS)).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer did not start: {log.read_text()}") from None
            time.sleep(0.02)
        else:
            return
