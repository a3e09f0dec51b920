"""How freed memory is treated."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `malloc.h`."""

LARGEST_THRESHOLD = 32 * 2**20
"""glibc refuses a larger one."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors, instead of giving it back to the kernel at once.

    Else every step gets its activations as fresh pages, which the kernel clears one by one: synthesis on two cores is
    1.3 times as fast without. Blocks of more than 32 MiB are still given back. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
