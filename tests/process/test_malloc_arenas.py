"""The number of malloc arenas of a server's process."""

import subprocess
import sys
from pathlib import Path

_COUNT_ARENAS = """
import ctypes, sys, threading
from caseload_server.commands import serve

if sys.argv[1] == "limited":
    serve.limit_malloc_arenas()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
all_run = threading.Barrier(13)  # a thread that ends would leave its arena to the next one
for _ in range(12):
    threading.Thread(target=all_run.wait).start()
all_run.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def test_the_threads_of_a_server_share_two_malloc_arenas(tmp_path: Path) -> None:
    counts = {}
    for way in ("limited", "unlimited"):
        file = tmp_path / way
        subprocess.run([sys.executable, "-c", _COUNT_ARENAS, way, str(file)], check=True, timeout=60)
        counts[way] = file.read_text().count("<heap nr=")
    assert counts["limited"] <= 2 < counts["unlimited"]
