"""A short run of `make fuzz`, and proof that the fuzzer detects faults."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload_server.api.therapist_service import TherapistServicer
from caseload_server.config import Config
from caseload_server.rpc.server import build_server
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tests.api.sample_values import field_refs
from tests.fuzz import run
from tests.fuzz.fuzzer import Fault, Fuzzer
from tests.fuzz.messages import Messages, Sent
from tests.fuzz.server_process import Serving, is_bad
from tests.support.api_driver import RPCS

COUNT = 4000
SEED = 5


def test_no_generated_call_causes_internal_or_unknown_or_a_crash(tmp_path: Path) -> None:
    with Serving(tmp_path) as server:
        fuzzer = Fuzzer(server.address)
        outcome = fuzzer.run(Messages(SEED), range(COUNT))
        fuzzer.close()
        assert server.end() == []
    assert outcome.faults == []
    assert set(outcome.answered) == set(RPCS)  # coverage: every RPC succeeded, and many error reasons occurred
    assert len(outcome.refused) >= 12, outcome.refused


def test_a_seed_determines_the_generated_calls() -> None:
    first, again, other = ([Messages(seed).call(number) for number in range(300)] for seed in (1, 1, 2))
    assert first == again
    assert len(set(first)) > 250
    assert len(set(first) & set(other)) < 50


def test_every_field_of_every_request_is_eventually_filled() -> None:
    unfilled = {
        (name, re.sub(r"\[\d+\]", "", ref.path))
        for name, rpc in RPCS.items()
        for ref in field_refs(GetMessageClass(rpc.input_type)())
    }
    messages = Messages(1)
    for number in range(4000):
        if not unfilled:
            return
        sent = messages.call(number)
        unfilled -= {(sent.rpc, path) for path in filled(sent)}
    assert unfilled == set()


def filled(sent: Sent) -> Iterator[str]:
    try:
        request = GetMessageClass(RPCS[sent.rpc].input_type).FromString(sent.data)
    except DecodeError:
        return
    for ref in field_refs(request):
        if any(field is ref.field for field, _ in ref.owner.ListFields()):
            yield re.sub(r"\[\d+\]", "", ref.path)


@pytest.fixture
def defective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that crashes on ids with a 7."""
    sound = TherapistServicer.GetTherapist

    def defect(self: TherapistServicer, request: Any, context: grpc.ServicerContext) -> Any:
        if "7" in request.therapist_id:
            raise KeyError(request.therapist_id)
        return sound(self, request, context)

    monkeypatch.setattr(TherapistServicer, "GetTherapist", defect)
    server = build_server(Config(address="127.0.0.1:0", database=f"sqlite:///{tmp_path}/defective.db", drain_seconds=0))
    server.start()
    yield server.address
    server.stop()


def test_a_defect_is_found_and_reproduced_by_the_saved_calls(
    defective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fuzzer = Fuzzer(defective)
    found = fuzzer.run(Messages(SEED), range(COUNT))
    fuzzer.close()
    assert {(fault.sent.rpc, fault.what) for fault in found.faults} == {
        ("GetTherapist", "INTERNAL with reason INTERNAL")
    }
    run.report(found, ["Traceback"])
    assert "fault: Traceback\n" in capsys.readouterr().out
    fuzzer = Fuzzer(defective)
    assert run.replay(fuzzer, run.FAULTS).faults == found.faults
    fuzzer.close()


def test_a_status_without_an_error_reason_is_a_fault(defective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sent, "method", "/caseload.v1.TherapistService/NoSuchCall")
    fuzzer = Fuzzer(defective)
    sent = Sent("GetTherapist", b"")
    fuzzer.send(sent)
    fuzzer.close()
    assert fuzzer.outcome.faults == [Fault(sent, "UNIMPLEMENTED without a reason of ours: Method not found!")]


def test_a_crashed_server_is_a_fault(tmp_path: Path) -> None:
    with Serving(tmp_path) as server:
        server.kill()
        assert server.end() == ["the server died: -9"]


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", '{"level": "error", "event": "x"}', "[]", "7"])
def test_a_log_line_about_a_defect_is_a_fault(line: str) -> None:
    assert is_bad(line)
    assert not is_bad('{"level": "info", "event": "started"}')
