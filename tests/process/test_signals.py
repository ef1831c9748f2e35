"""What each signal does: stop, reload, interrupt, or nothing."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from caseload.v1.therapist_service_pb2 import ListTherapistsRequest
from caseload_server.commands.signals import block_stop_signals, wait_for_stop

from tests.process.command_runner import CASELOAD, url
from tests.process.worker_processes import WorkersServer, is_running
from tests.security.server_fixture import KeysFile, bearer
from tests.security.tls_files import Files
from tests.support.servers import Client, ServerProcess
from tests.support.waiting import HUNG_SECONDS, eventually

MEANINGLESS = ["USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "STKFLT", "RTMIN", "RTMAX"]
STOPS = ["TERM", "INT", "QUIT", "XCPU"]
HUP = signal.SIGHUP


SIGNALS_ITSELF = """
import importlib.abc, os, runpy, signal, sys
class DuringImports(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            for number in map(int, sys.argv.pop().split(",")):
                os.kill(os.getpid(), number)
sys.meta_path.insert(0, DuringImports())
runpy.run_module("caseload_server", run_name="__main__")
"""
"""Sends signals to itself at its first import of another distribution, which is long before the command runs."""


def number_of(name: str) -> int:
    return int(getattr(signal, f"SIG{name}"))


def is_accepted(client: Client, token: str) -> bool:
    try:
        client.therapists.ListTherapists(ListTherapistsRequest(), metadata=bearer(token), timeout=HUNG_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True


def events(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines()]


def test_meaningless_signals_change_nothing(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db")) as server:
        for name in MEANINGLESS:
            server.process.send_signal(number_of(name))
        client = Client(server.address)
        client.therapists.ListTherapists(ListTherapistsRequest(), timeout=HUNG_SECONDS)
        client.close()
        code, log = server.stop()
    assert (code, events(log)) == (0, ["started", "stopping", "stopped"])


def test_meaningless_signals_and_sighup_do_not_end_a_start(tmp_path: Path) -> None:
    numbers = ",".join(str(number_of(name)) for name in (*MEANINGLESS, "HUP"))
    command = [sys.executable, "-c", SIGNALS_ITSELF, "serve", "--address", "127.0.0.1:0", "--drain-seconds", "0"]
    command += ["--database", url(tmp_path / "caseload.db"), "--access-log", os.devnull, numbers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert events(process.stderr.readline()) == ["started"]
        assert events(process.stderr.readline()) == ["reloading"]
        process.terminate()
        _, log = process.communicate(timeout=HUNG_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, events(log)) == (0, ["stopping", "stopped"])


def test_sighup_during_the_start_ends_a_command_that_does_not_serve(tmp_path: Path) -> None:
    command = ["env", "--default-signal=HUP", sys.executable, "-c", SIGNALS_ITSELF, "import", "-"]
    command += ["--database", url(tmp_path / "caseload.db"), str(int(HUP))]
    ended = subprocess.run(command, stdin=subprocess.PIPE, timeout=HUNG_SECONDS, check=False)
    assert ended.returncode == -HUP


@pytest.mark.parametrize("name", STOPS)
def test_each_stop_signal_drains(tmp_path: Path, name: str) -> None:
    with ServerProcess(url(tmp_path / "caseload.db")) as server:
        code, log = server.stop(number_of(name))
    assert (code, events(log)) == (0, ["started", "stopping", "stopped"])


@pytest.mark.slow
def test_a_supervisor_and_its_workers_survive_every_signal_but_those_that_stop(tmp_path: Path) -> None:
    with WorkersServer(url(tmp_path / "caseload.db")) as server:
        workers = server.workers
        for pid in (server.process.pid, *workers):
            for name in (*MEANINGLESS, "HUP"):
                os.kill(pid, number_of(name))
        code, log = server.stop()
        assert server.workers == set()
    found = events(log)
    assert code == 0
    assert 2 <= found.count("reloading") <= 4  # two signals at once can be one
    assert "worker ended, restarting" not in found
    assert not any(map(is_running, workers))


def test_sighup_reloads_the_keys_at_once(tmp_path: Path) -> None:
    keys = KeysFile(tmp_path / "keys")
    first = keys.add("billing", "read")
    with ServerProcess(url(tmp_path / "caseload.db"), "--keys-file", str(keys.path)) as server:
        client = Client(server.address)
        assert is_accepted(client, first)
        before = keys.path.stat()
        second = keys.add("reports", "read")
        os.utime(keys.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        server.process.send_signal(HUP)
        eventually(lambda: is_accepted(client, second))
        client.close()
        code, log = server.stop()
    assert code == 0
    assert "reloading" in events(log)
    assert events(log).count("callers changed") == 1


def test_sighup_reads_keys_and_certificates_that_look_unchanged(tmp_path: Path) -> None:
    files = Files.create(tmp_path)
    files.keys.add("billing", "read")
    settings = ("--keys-file", str(files.keys.path), "--tls-cert", str(files.cert), "--tls-key", str(files.key))
    with ServerProcess(url(tmp_path / "caseload.db"), *settings) as server:
        server.process.send_signal(HUP)
        reloaded: list[str] = []
        assert server.process.stderr is not None
        while sum("files reloaded" in line for line in reloaded) < 2:
            reloaded.append(server.process.stderr.readline())
            assert reloaded[-1], "the server has ended"
        assert server.stop()[0] == 0


def test_a_reload_that_cannot_begin_does_not_end_the_server() -> None:
    """No thread can be started where the machine has reached its limit of processes."""
    ready, reloads = threading.Event(), []

    def reload() -> None:
        reloads.append(1)
        raise RuntimeError

    def wait() -> None:
        block_stop_signals()
        ready.set()
        wait_for_stop(reload)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert ready.wait(HUNG_SECONDS)
    assert waiting.ident
    signal.pthread_kill(waiting.ident, HUP)
    eventually(lambda: reloads == [1])
    waiting.join(0.1)
    assert waiting.is_alive()
    signal.pthread_kill(waiting.ident, signal.SIGTERM)
    waiting.join(HUNG_SECONDS)
    assert not waiting.is_alive()


def test_sighup_opens_a_moved_access_log_again_without_a_call(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with ServerProcess(url(tmp_path / "caseload.db"), access_log=str(log)) as server:
        log.rename(tmp_path / "access.log.1")
        server.process.send_signal(HUP)
        eventually(log.exists)
        assert server.stop()[0] == 0


def test_a_server_whose_terminal_was_closed_stops(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    command = ["setsid", "--ctty", *CASELOAD, "serve", "--address", "127.0.0.1:0", "--drain-seconds", "0"]
    command += ["--database", url(tmp_path / "caseload.db"), "--access-log", os.devnull]
    process = subprocess.Popen(command, stdin=its, stdout=subprocess.PIPE, stderr=its, text=True)
    os.close(its)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("caseload: serving on ")
        process.send_signal(HUP)  # of an operator: it is no reason to stop
        while b"reloading" not in os.read(ours, 4096):
            pass
        os.close(ours)
        assert process.wait(HUNG_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["HUP", "QUIT"])
def test_a_signal_of_the_terminal_interrupts_a_command_that_cleans_up(tmp_path: Path, name: str) -> None:
    started, input_ = os.pipe()
    command = ["env", "--default-signal=HUP", *CASELOAD, "import", "-", "--database", url(tmp_path / "caseload.db")]
    environment = {**os.environ, "CASELOAD_ACCESS_LOG": os.devnull}
    process = subprocess.Popen(
        command, stdin=started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        eventually(lambda: any(tmp_path.iterdir()))
        for other in MEANINGLESS:
            process.send_signal(number_of(other))
        process.send_signal(number_of(name))
        printed, log = process.communicate(timeout=HUNG_SECONDS)
    finally:
        process.kill()
        process.communicate()
        os.close(started)
        os.close(input_)
    assert (process.returncode, printed, log) == (128 + number_of(name), "", "caseload: interrupted\n")
    assert list(tmp_path.iterdir()) == []


WITH_A_DESTRUCTOR = """
import os, signal, sys, time
import click
from caseload_server.commands.signals import InterruptibleCommand

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGQUIT)
    time.sleep(0)

def fail():
    raise ValueError

class Destroyed:
    def __del__(self):
        destroy()

@click.command(cls=InterruptibleCommand)
def command():
    Destroyed()
    time.sleep(600)

"""
IN_A_DESTRUCTOR = "destroy = interrupt"
ON_A_SLOW_MACHINE = """
destroy = interrupt
set_timer = signal.setitimer

def set_timer_slowly(*arguments):
    signal.setitimer = set_timer
    set_timer(*arguments)
    time.sleep(0.1)  # so the timer expires before its caller returns

signal.setitimer = set_timer_slowly
"""
IN_THE_REPORT_OF_A_DESTRUCTOR = "destroy, sys.__unraisablehook__ = fail, interrupt"


@pytest.mark.parametrize(
    "moment",
    [IN_A_DESTRUCTOR, ON_A_SLOW_MACHINE, IN_THE_REPORT_OF_A_DESTRUCTOR],
    ids=["in a destructor", "on a slow machine", "in the report of a destructor"],
)
def test_a_signal_where_python_ignores_an_exception_interrupts_a_command_too(moment: str) -> None:
    command = [sys.executable, "-c", f"{WITH_A_DESTRUCTOR}{moment}\ncommand()"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=HUNG_SECONDS, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGQUIT, "caseload: interrupted\n")


def test_a_command_under_nohup_is_not_interrupted_by_sighup(tmp_path: Path) -> None:
    lines, input_ = os.pipe()
    command = ["nohup", *CASELOAD, "import", "-", "--database", url(tmp_path / "caseload.db")]
    process = subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(lines)
    eventually(lambda: any(tmp_path.iterdir()))
    process.send_signal(HUP)
    os.close(input_)
    _, log = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == 2  # the input ended early
    assert "FILE: " in log
