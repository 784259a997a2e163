"""Host memory that a CPU's train steps take and give back, where the C library is glibc."""

import ctypes
import mmap
from typing import Any

# Of glibc's <malloc.h> and Linux' <sys/mman.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_DONTNEED = 4
# Blocks with which holes are filled. Smaller holes are in lists of at most 32 sizes, which are soon looked through.
_LARGEST, _SMALLEST = 1 << 30, 1 << 13

_kept = False


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "top"]
    ]


def keep_freed_memory() -> None:
    """Lets this process reuse freed memory of any size, in place of returning it to the system.

    XLA takes the temporaries of a program anew in every call. glibc returns a block of more than 32 MiB as soon as it
    is free, and in every train step on a CPU the system would clear the same pages once more: 600 MiB in a step of
    `flickr8k_cn`, which without that takes a fifth less processor time. The memory is kept in the one heap that can
    hold large blocks, so all threads share it. To be called before threads begin; does nothing where the C library is
    not glibc.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)
        _kept = True


def fill_holes() -> None:
    """Makes one block of each piece of the heap that is free between others, and gives its pages back to the system.

    Compiling the step of `demo` leaves 47,000 such holes of 1.1 GiB. To find place for a block, and to sort a freed one
    in, glibc walks through those of similar sizes, while all other threads wait: a fifth of the processor time of a
    step. Later blocks are laid behind them. The blocks are never freed, so this is for after a compilation and not for
    every step. Does nothing unless `keep_freed_memory` has been called: otherwise each thread has a heap of its own,
    and few holes.
    """
    libc = _libc()
    if not _kept or not hasattr(libc, "mallinfo2"):
        return
    left = _free(libc)  # an end, also where another library has taken the place of glibc's malloc
    behind = libc.malloc(_LARGEST)  # larger than any hole
    libc.free(behind)
    size = _LARGEST // 2 if behind else 0
    while size >= _SMALLEST and left > 0:
        block = libc.malloc(size)
        if block and block < behind:
            _give_pages_back(libc, block, size)
            left -= size
        else:
            libc.free(block)
            size //= 2


def _free(libc: Any) -> int:
    libc.mallinfo2.restype = _Heap
    heap = libc.mallinfo2()
    return int(heap.free - heap.top)


def _give_pages_back(libc: Any, block: int, size: int) -> None:
    first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (block + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        libc.madvise(first, length, _DONTNEED)


def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
