"""The metrics page serves only what Prometheus requests, and does not slow down calls."""

import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from caseload_server.observability import metrics_page
from caseload_server.observability.metrics_page import MetricsPage
from caseload_server.rpc.server import CaseloadServer
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from tests.conftest import serving
from tests.observability.metrics_client import page
from tests.process.command_runner import SECRET, SERVE, refusal, url
from tests.support.ports import need_ipv6
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually

PLACES = 16
"""Maximum number of concurrent readers."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = url(tmp_path_factory.mktemp("page") / "caseload.db")
    with serving(database, metrics_address="127.0.0.1:0") as server:
        assert server.metrics_address
        yield server.metrics_address


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/Metrics", "/favicon.ico"])
def test_other_paths_are_not_found(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}{path}", timeout=HUNG_SECONDS)
    assert refused.value.code == 404
    refused.value.close()


def test_the_page_has_the_content_type_of_prometheus(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=HUNG_SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page of a server whose timeout for slow readers exceeds the test."""
    monkeypatch.setattr(metrics_page, "_IDLE_TIMEOUT_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(metrics_page, "_REQUEST_TIMEOUT_SECONDS", NEVER_SECONDS)
    with serving(url(tmp_path / "caseload.db"), metrics_address="127.0.0.1:0") as server:
        assert server.metrics_address
        yield server.metrics_address


def silent_readers(address: str, count: int, stack: ExitStack) -> list[socket.socket]:
    host, port = address.split(":")
    return [stack.enter_context(socket.create_connection((host, int(port)), HUNG_SECONDS)) for _ in range(count)]


def is_closed(reader: socket.socket) -> bool:
    reader.setblocking(False)
    try:
        return not reader.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def is_answered(address: str) -> bool:
    with suppress(OSError):
        return bool(page(address))
    return False


def test_idle_readers_take_a_limited_number_of_threads(patient: str) -> None:
    def count_threads() -> int:
        return sum("process_request" in thread.name for thread in threading.enumerate())

    with ExitStack() as silent:
        readers = silent_readers(patient, 100, silent)
        eventually(lambda: sum(map(is_closed, readers)) == 100 - PLACES)
        assert 0 < count_threads() <= PLACES
    eventually(lambda: is_answered(patient))


def test_silent_readers_do_not_keep_others_from_the_page(patient: str) -> None:
    with ExitStack() as silent:
        readers = silent_readers(patient, PLACES, silent)
        assert is_answered(patient)
        assert is_answered(patient)
        assert is_closed(readers[0])  # it made room
        assert sum(map(is_closed, readers)) <= 2


class SlowMetrics(Collector):
    """Metrics that are collected only when the test says so."""

    def __init__(self) -> None:
        self.asked, self.finish = threading.Event(), threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.asked.set()
        assert self.finish.wait(HUNG_SECONDS)
        yield Metric("caseload_slow", "", "gauge")


def test_a_reader_that_has_sent_its_request_is_answered_while_silent_ones_arrive() -> None:
    metrics, registry = SlowMetrics(), CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    metrics.finish.set()
    shown = MetricsPage("127.0.0.1:0", registry)
    shown.start()
    with closing(shown), ExitStack() as silent, ThreadPoolExecutor(1) as threads:
        metrics.asked.clear()
        metrics.finish.clear()
        answer = threads.submit(page, shown.address)
        assert metrics.asked.wait(HUNG_SECONDS)
        readers = silent_readers(shown.address, 3 * PLACES, silent)
        eventually(lambda: sum(map(is_closed, readers)) == 2 * PLACES + 1)
        metrics.finish.set()
        assert "caseload_slow" in answer.result(HUNG_SECONDS)


class OverlappingPages(Collector):
    """Counts how many pages are collected at the same time. Each waits until another could have begun."""

    def __init__(self) -> None:
        self.current = self.most = 0

    def collect(self) -> Iterator[Metric]:
        self.current += 1
        self.most = max(self.most, self.current)
        threading.Event().wait(0.05)
        self.current -= 1
        yield Metric("caseload_slow", "", "gauge")


def test_pages_are_generated_one_at_a_time() -> None:
    metrics, registry = OverlappingPages(), CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    shown = MetricsPage("127.0.0.1:0", registry)
    shown.start()
    with closing(shown), ThreadPoolExecutor(4) as threads:
        pages = list(threads.map(page, [shown.address] * 4))
    assert ["caseload_slow" in text for text in pages] == [True] * 4
    assert metrics.most == 1


class LargePage(Collector):
    """A page that no socket buffers."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.asked.set()
        yield Metric("caseload_large", "x" * 20_000_000, "gauge")


def test_a_reader_that_takes_no_page_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "_IDLE_TIMEOUT_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(metrics_page, "_REQUEST_TIMEOUT_SECONDS", NEVER_SECONDS)
    metrics, registry = LargePage(), CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    shown = MetricsPage("127.0.0.1:0", registry)
    shown.start()
    with closing(shown), ExitStack() as silent:
        [reader] = silent_readers(shown.address, 1, silent)
        reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert metrics.asked.wait(HUNG_SECONDS)
        assert "caseload_large" in page(shown.address)


def test_a_reader_that_sends_too_large_a_request_is_disconnected(patient: str) -> None:
    with ExitStack() as stack:
        small, large = silent_readers(patient, 2, stack)
        header = b"X: " + b"x" * 995 + b"\r\n"
        small.sendall(b"GET /metrics HTTP/1.0\r\n" + 7 * header + b"\r\n")
        assert small.recv(15) == b"HTTP/1.0 200 OK"
        large.sendall(b"GET /metrics HTTP/1.0\r\n" + 9 * header)  # the head has no end yet
        eventually(lambda: is_closed(large))


def test_slow_readers_are_disconnected(patient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "_REQUEST_TIMEOUT_SECONDS", 0.5)
    with ExitStack() as slow:
        [reader] = silent_readers(patient, 1, slow)

        def is_closed_between_bytes() -> bool:
            with suppress(OSError):  # it was closed
                reader.send(b"G")
            return is_closed(reader)

        eventually(is_closed_between_bytes)


def test_a_malformed_request_is_rejected_and_not_logged(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), HUNG_SECONDS) as connection:
        connection.sendall(SECRET.encode() + b"\r\n\r\n")
        connection.recv(100)
    asking = http.client.HTTPConnection(address, timeout=HUNG_SECONDS)
    asking.request("BREW", f"/{SECRET}")
    assert asking.getresponse().status == 501
    asking.close()
    assert capfd.readouterr() == ("", "")
    assert SECRET not in page(address)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["127.0.0.1", "9464", "", "127.0.0.1:65536", f"{SECRET}:1", f"{SECRET}\udcff:0"])
def test_an_invalid_metrics_address_is_rejected(tmp_path: Path, wrong: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--metrics-address", wrong)
    assert line.startswith("--metrics-address: ")
    assert SECRET not in line


@pytest.mark.slow
@pytest.mark.parametrize("host", ["192.0.2.1", "127.0.0.1"])
def test_a_taken_or_remote_metrics_address_is_rejected(tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = f"{host}:{listening.getsockname()[1]}"
        line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--metrics-address", taken)
    assert line.startswith("--metrics-address: cannot listen on this address")
    assert taken not in line


def test_a_stop_releases_the_metrics_address(measured_server: CaseloadServer, tmp_path: Path) -> None:
    taken = measured_server.metrics_address
    assert taken
    page(taken)
    measured_server.stop()
    with serving(url(tmp_path / "caseload.db"), metrics_address=taken) as after:
        assert page(after.metrics_address)


def test_an_ipv6_address_is_served() -> None:
    need_ipv6()
    shown = MetricsPage("[::1]:0", CollectorRegistry())
    shown.start()
    assert page(shown.address) == ""
    shown.close()
