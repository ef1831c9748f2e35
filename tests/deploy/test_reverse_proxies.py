"""nginx and HAProxy with the files of docs/deploy/: callers behind them notice no difference, and no restart."""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import pytest
from caseload.client import Caseload, connect
from caseload.v1 import change_service_pb2 as changes
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.resources_pb2 import Patient
from caseload_server.domain import limits
from caseload_server.domain.errors import Unauthenticated
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.reverse_proxies import SHIPPED, ReverseProxy, reverse_proxy
from tests.process.command_runner import url
from tests.security.server_fixture import KeysFile, LogReader, bearer
from tests.support.postgres.databases import Databases
from tests.support.secure_server import write_certificate
from tests.support.servers import ServerProcess, free_address, refusal
from tests.support.waiting import HUNG_SECONDS, eventually, join

pytestmark = [pytest.mark.slow, pytest.mark.checkout]

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Instance:
    """A server behind the proxy that keeps its address over restarts."""

    def __init__(self, database: str, log: Path, *arguments: str) -> None:
        self.address = free_address()
        self.log = LogReader(log)
        self._made = (database, "--address", self.address, *arguments), str(log)

    def start(self) -> None:
        arguments, log = self._made
        self._process = ServerProcess(*arguments, access_log=log).__enter__()

    def stop(self) -> None:
        code, log = self._process.stop()
        assert code == 0, log

    def kill(self) -> None:
        self._process.__exit__(None, None, None)


class Scene:
    """Two servers on one database, and a proxy in front of them."""

    def __init__(self, folder: Path, program: str, database: str) -> None:
        self.folder = folder
        self.program = program
        keys = KeysFile(folder / "keys")
        self.key = keys.add("billing")
        write_certificate(folder)
        arguments = ("--behind-proxy", "127.0.0.1", "--keys-file", str(keys.path))
        self.instances = [Instance(database, folder / f"{at}.log", *arguments) for at in range(2)]
        self.proxy: ReverseProxy

    def backends(self) -> list[str]:
        return [one.address for one in self.instances]

    def client(self, **settings: Any) -> Caseload:
        """The shipped client, with its retries."""
        return connect(self.proxy.target, key=self.key, tls_ca=self.folder / "ca.pem", **settings)

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A plain channel, without retries."""
        credentials = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes())
        return grpc.secure_channel(self.proxy.target, credentials, [("grpc.enable_retries", 0), *options])

    def lines(self) -> list[dict[str, Any]]:
        """The access log of both servers."""
        return [line for one in self.instances for line in one.log.lines()]


@pytest.fixture(scope="module", params=list(SHIPPED))
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_databases: Databases
) -> Iterator[Scene]:
    with ExitStack() as opened:
        database = opened.enter_context(postgres_databases.acquire())
        made = Scene(tmp_path_factory.mktemp(request.param), request.param, database)
        made.proxy = opened.enter_context(reverse_proxy(made.program, made.folder, made.backends()))
        for instance in made.instances:
            instance.start()
            opened.callback(instance.kill)
        await_calls(made)
        yield made


def await_calls(scene: Scene) -> None:
    """Waits until the proxy has noticed that both servers answer: HAProxy looks once a second."""
    with scene.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        before = [len(one.log.lines()) for one in scene.instances]

        def both_answer() -> bool:
            try:
                stub.Check(health_pb2.HealthCheckRequest(service="caseload.v1.PatientService"), timeout=1)
            except grpc.RpcError:
                return False
            return all(len(one.log.lines()) > count for one, count in zip(scene.instances, before, strict=True))

        eventually(both_answer, scene.proxy.log.read_text)


def create(client: Caseload, **settings: Any) -> str:
    request = pb.CreatePatientRequest(patient=Patient(display_name="Jane Doe"))
    return client.patients.CreatePatient(request, **settings).patient.patient_id


def failure(scene: Scene, request: pb.UpdatePatientRequest, *metadata: tuple[str, str]) -> grpc.RpcError:
    """The error of a call without retries, with a key and this metadata."""
    with scene.channel(("grpc.max_send_message_length", -1)) as channel, pytest.raises(grpc.RpcError) as caught:
        PatientServiceStub(channel).UpdatePatient(
            request, metadata=(*bearer(scene.key), *metadata), timeout=HUNG_SECONDS
        )
    return caught.value


def test_writes_reads_and_lists_of_the_largest_size_pass(scene: Scene) -> None:
    largest = Patient(display_name="Jane Doe", annotations={f"key{at}": "x" * 900 for at in range(30)})
    with scene.client() as client:
        made = [client.patients.CreatePatient(pb.CreatePatientRequest(patient=largest)) for _ in range(60)]
        listed = client.patients.ListPatients(pb.ListPatientsRequest(page_size=1000))
        got = client.patients.GetPatient(pb.GetPatientRequest(patient_id=made[0].patient.patient_id))
    assert got.patient == made[0].patient
    assert listed.ByteSize() > 1.5 * 1024 * 1024


def test_a_body_that_is_too_large_gets_the_answer_of_the_server(scene: Scene) -> None:
    """nginx by itself would answer 413 above 1 MiB, which is UNKNOWN."""
    largest = pb.UpdatePatientRequest(patient=Patient(display_name="x" * (limits.MAX_MESSAGE_BYTES - 8)))
    assert largest.ByteSize() == limits.MAX_MESSAGE_BYTES
    assert refusal(failure(scene, largest)).reason == "INVALID_FIELD"
    found: Any = failure(scene, pb.UpdatePatientRequest(patient=Patient(display_name="x" * 5_000_000)))
    # The server resets the stream after its answer, and HAProxy may pass on only the reset.
    assert found.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED), found


def test_long_metadata_passes_as_far_as_the_server_takes_it(scene: Scene) -> None:
    """Above their own limits, proxies end the connection of all calls."""
    missing = pb.UpdatePatientRequest(patient=Patient(patient_id="nobody", display_name="Jane Doe"))
    assert refusal(failure(scene, missing, ("x-baggage", "y" * 14_000))).reason == "PATIENT_NOT_FOUND"
    many = [(f"x-{at}", "y" * 40) for at in range(130)]
    assert refusal(failure(scene, missing, *many)).reason == "PATIENT_NOT_FOUND"
    too_long: Any = failure(scene, missing, ("x-baggage", "y" * 20_000))
    assert too_long.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


class LongError(grpc.GenericRpcHandler):
    """Rejects every call with the longest details that the server sends."""

    def service(self, _call: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.unary_unary_rpc_method_handler(self._reject)

    def _reject(self, _request: bytes, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"x" * 4096),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "")


def test_nginx_passes_the_longest_details_of_an_error(tmp_path: Path) -> None:
    """They are in the headers of the response, for which nginx has a buffer."""
    scene = Scene(tmp_path, "nginx", url(tmp_path / "caseload.db"))
    server = grpc.server(ThreadPoolExecutor(1), handlers=[LongError()])
    backends = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", free_address()]
    server.start()
    try:
        with reverse_proxy("nginx", tmp_path, backends) as scene.proxy:
            found: Any = failure(scene, pb.UpdatePatientRequest())
    finally:
        server.stop(None).wait(HUNG_SECONDS)
    assert (found.code(), dict(found.trailing_metadata())["grpc-status-details-bin"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        b"x" * 4096,
    )


def test_the_access_log_has_the_address_of_the_caller_and_not_one_that_it_names(scene: Scene) -> None:
    call = "/caseload.v1.PatientService/GetPatient"
    headers = {"content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {scene.key}"}
    headers["x-forwarded-for"] = "192.0.2.7"
    arguments = [text for header in headers.items() for text in ("--header", ": ".join(header))]
    (scene.folder / "message").write_bytes(b"\0\0\0\0\0")
    body = f"@{scene.folder}/message"
    command = ["curl", "--silent", "--http2", "--interface", "127.0.0.9", "--cacert", str(scene.folder / "ca.pem")]
    port = scene.proxy.target.rpartition(":")[2]
    resolve = ["--resolve", f"localhost:{port}:127.0.0.1"]
    target = f"https://{scene.proxy.target}{call}"
    done = subprocess.run(
        [*command, *resolve, *arguments, "--data-binary", body, target], timeout=HUNG_SECONDS, check=False
    )
    assert done.returncode == 0
    [line] = eventually(lambda: [line for line in scene.lines() if line["method"] == call and line["code"] != "OK"])
    assert (line["caller"], line["peer"]) == ("billing", "ipv4:127.0.0.9")


def test_a_health_watch_is_unimplemented_and_a_check_is_answered(scene: Scene) -> None:
    """A client that watched one server would stop to call all others when that one drains."""
    with scene.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="caseload.v1.PatientService")
        assert stub.Check(request, timeout=HUNG_SECONDS).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request, timeout=HUNG_SECONDS))
    found: Any = caught.value
    assert found.code() == grpc.StatusCode.UNIMPLEMENTED


class Writer:
    """Creates patients one after the other, in a thread."""

    def __init__(self, scene: Scene) -> None:
        self.ids: list[str] = []
        self._scene = scene
        self._stopped = Event()
        self._errors: list[grpc.RpcError] = []
        self._thread = Thread(target=self._write)
        self._thread.start()

    def more(self, count: int = 20) -> None:
        """Waits for further patients."""
        enough = len(self.ids) + count
        eventually(lambda: self._errors or len(self.ids) >= enough, self._scene.proxy.log.read_text)
        assert self._errors == []

    def stop(self) -> None:
        self._stopped.set()
        join(self._thread)
        assert self._errors == []

    def _write(self) -> None:
        with self._scene.client(timeout=HUNG_SECONDS) as client:
            try:
                while not self._stopped.is_set():
                    self.ids.append(create(client))
            except grpc.RpcError as error:
                self._errors.append(error)


class Watcher:
    """Reads a watch in a thread, and resumes it as the client does."""

    def __init__(self, scene: Scene) -> None:
        self.ids: list[str] = []
        self.error: grpc.RpcError | None = None
        self._client = scene.client()
        with scene.client() as client:
            after = client.changes.ListChanges(changes.ListChangesRequest()).head_revision
        self._thread = Thread(target=self._read, args=(after,))
        self._thread.start()

    def _read(self, after: str) -> None:
        try:
            for response in self._client.watch(after):
                self.ids += [one.patient_id for made in response.change_sets for one in made.changes]
        except grpc.RpcError as error:
            self.error = error

    def stop(self) -> None:
        self._client.close()
        join(self._thread)


def test_a_watch_receives_each_change_once_over_restarts_crashes_and_reloads(scene: Scene) -> None:
    watcher, writer = Watcher(scene), Writer(scene)
    try:
        writer.more()
        for end in (Instance.stop, Instance.kill):
            for instance in scene.instances:
                end(instance)
                writer.more()
                instance.start()
                await_calls(scene)
                writer.more()
            scene.proxy.reload()
            writer.more()
        writer.stop()
        eventually(lambda: watcher.error or len(watcher.ids) >= len(writer.ids))
        assert watcher.ids == writer.ids
    finally:
        writer._stopped.set()
        watcher.stop()


def test_without_a_server_calls_are_unavailable_and_a_client_with_retries_waits(scene: Scene) -> None:
    """502, 503 and 504 of a proxy are UNAVAILABLE."""
    for instance in scene.instances:
        instance.kill()
    try:
        missing = pb.UpdatePatientRequest(patient=Patient(patient_id="nobody"))
        found: Any = failure(scene, missing)
        assert found.code() == UNAVAILABLE
    finally:
        for instance in scene.instances:
            instance.start()
    await_calls(scene)
    with scene.client() as client:
        assert create(client)


@pytest.mark.parametrize("program", SHIPPED)
def test_a_watch_without_changes_outlives_the_timeouts(program: str) -> None:
    text = SHIPPED[program].read_text()
    names = ("grpc_read_timeout", "grpc_send_timeout") if program == "nginx" else ("timeout client", "timeout server")
    for name in names:
        [seconds] = re.findall(rf"^ +{name} +(\d+)s", text, re.MULTILINE)
        assert float(seconds) >= 2 * limits.HEARTBEAT_SECONDS


@pytest.mark.parametrize("program", SHIPPED)
def test_a_server_without_keys_rejects_what_the_proxy_forwards(tmp_path: Path, program: str) -> None:
    """Their operators have not read that each caller of the proxy has all permissions."""
    scene = Scene(tmp_path, program, url(tmp_path / "caseload.db"))
    with ServerProcess(url(tmp_path / "caseload.db")) as server:
        backends = [server.address, free_address()]
        with reverse_proxy(program, tmp_path, backends, caller="192.0.2.7") as scene.proxy:
            missing = pb.UpdatePatientRequest(patient=Patient(patient_id="nobody"))
            found: Any = eventually(lambda: answered(failure(scene, missing)))
    assert (found.code(), found.details()) == (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated.forwarded_text)


def answered(error: Any) -> Any:
    """The error, unless it is that of the proxy: the server is not known to be ready."""
    return error if error.code() != UNAVAILABLE else None


@pytest.mark.parametrize("program", SHIPPED)
def test_the_connection_to_the_servers_can_be_encrypted(tmp_path: Path, program: str) -> None:
    scene = Scene(tmp_path, program, url(tmp_path / "caseload.db"))
    tls = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "cert.key"))
    missing = pb.UpdatePatientRequest(patient=Patient(patient_id="nobody", display_name="Jane Doe"))
    with (
        ServerProcess(url(tmp_path / "caseload.db"), *tls) as server,
        reverse_proxy(program, tmp_path, [server.address, free_address()], encrypted=True) as scene.proxy,
    ):
        found = eventually(lambda: answered(failure(scene, missing)), scene.proxy.log.read_text)
    assert refusal(found).reason == "PATIENT_NOT_FOUND"
