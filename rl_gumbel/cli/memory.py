"""What the command line asks of the C library's allocator."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEEP = 2**30
"""Bytes of freed memory that the process keeps."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next allocation; without glibc nothing happens.

    By default it gives large ones back to the kernel, and the tensors of a large minibatch are
    paged in anew at every operation, which costs up to half of the time of an update on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEEP)
        mallopt(M_TRIM_THRESHOLD, KEEP)
