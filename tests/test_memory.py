import platform
import subprocess
import sys

import pytest

# Prints the page faults of allocating and freeing 64 MB ten times. In one piece, as glibc itself maps what is larger
# than 32 MB anew each time; of smaller pieces it sometimes keeps all. Before it settles, the heap may grow a few times
SCRIPT = """
import resource
import torch as th
from sb3_dapo import DAPO, fast as memory  # as a run has them both

if {keep}:
    memory.keep_freed_memory()
for i in range(20):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = th.ones(4096, 4096)
    del tensor
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    faults = {
        keep: int(subprocess.check_output([sys.executable, "-c", SCRIPT.format(keep=keep)])) for keep in (True, False)
    }
    assert 10 * faults[True] < faults[False]


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("there may be no such function"))
    from sb3_dapo.fast import keep_freed_memory

    keep_freed_memory()
