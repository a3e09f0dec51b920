"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

RESIDENT = """
import sys
import torch
from fl_cmi.memory import keep_freed_memory

def pages():
    return int(open("/proc/self/statm").read().split()[1])

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
before = pages()
torch.ones(4, 2**20)
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_the_memory_of_a_tensor_stays() -> None:
    def kept(what: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", RESIDENT, what], text=True))

    # 16 MiB are 4,096 pages.
    assert kept("give") < 1024
    assert kept("keep") > 3072
