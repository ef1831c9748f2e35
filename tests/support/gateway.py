"""The HTTP gateway that `make gateway` builds."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.docs.doc_blocks import search_path
from tests.support.missing_tool import NoTool
from tests.support.waiting import HUNG_SECONDS


def find_gateway() -> str:
    """Returns the path of the program. Raises NoTool if it was not built."""
    found = shutil.which("caseload-gateway", path=search_path())
    if found is None:
        raise NoTool("needs caseload-gateway: make gateway, which needs Go 1.26")
    return found


@contextmanager
def gateway(*arguments: str, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """Runs the gateway with these arguments. Yields its address."""
    command = [find_gateway(), "-listen", listen, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("caseload-gateway: serving on ")
            yield line.removeprefix("caseload-gateway: serving on ").strip()
        finally:
            process.terminate()
            process.wait(HUNG_SECONDS)
    assert process.returncode == 0


class Answer(NamedTuple):
    """The answer of an HTTP call."""

    status: int
    body: Any
    text: str

    def detail(self, name: str) -> Any:
        """The google.rpc message of this name among the details of an error."""
        kind = f"type.googleapis.com/google.rpc.{name}"
        [found] = [detail for detail in self.body["details"] if detail["@type"] == kind]
        return found

    @property
    def reason(self) -> str:
        """The reason of an error."""
        return str(self.detail("ErrorInfo")["reason"])

    @property
    def fields(self) -> list[str]:
        """The invalid fields of an error."""
        return [violation["field"] for violation in self.detail("BadRequest")["field_violations"]]


def curl(url: str, *arguments: str, data: Any = None, method: str = "") -> Answer:
    """Calls with curl.

    Args: data, the JSON body; a str is sent unchanged. method, if not GET, or POST with data.
    """
    command = ["curl", "--silent", "--show-error", "--globoff", "--write-out", "\n%{http_code}", url, *arguments]
    if data is not None:
        command += ["--data-binary", data if isinstance(data, str) else json.dumps(data)]
    if method:
        command += ["--request", method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    text, _, status = done.stdout.rpartition("\n")
    return Answer(int(status), json.loads(text), text)
