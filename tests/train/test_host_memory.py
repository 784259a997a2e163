"""A training reuses the memory of its last step, and leaves alone what lies free between blocks that are in use."""

import ctypes
import statistics
import subprocess
import sys

import pytest

# Prints how many pages the system hands out in each of some calls whose temporaries have 64 MiB, or 16,384 pages.
PROGRAM = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: else a page may be a huge one
import jax, jax.numpy as jnp
from r2d2_jax.train.host_memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
square = jax.jit(lambda x: jnp.exp(x @ x.T) @ x)
x = jnp.ones((4096, 2))
for call in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    square(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# Makes 10,000 holes of 2 to 90 KiB, which glibc lays into its heap in any case, between blocks that are kept. Prints
# how much memory is in use and lies free, in MiB, before and after the holes are filled, and how many of 1,000 blocks
# of more than 8 KiB are laid into holes then.
HOLES = """
import ctypes, random
from r2d2_jax.train.host_memory import fill_holes, keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "heap n1 n2 n3 n4 n5 n6 used free top".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def state():
    pages = int(open("/proc/self/statm").read().split()[1])
    info = libc.mallinfo2()
    return pages >> 8, (info.free - info.top) >> 20

if {kept}:
    keep_freed_memory()
sizes = [int(2 ** random.Random(place).uniform(11, 16.5)) for place in range(10_000)]
between = [(libc.malloc(size), libc.malloc(64)) for size in sizes]
for size, (block, _) in zip(sizes, between):
    ctypes.memset(block, 1, size)
for block, _ in between:
    libc.free(block)
before = state()
fill_holes()
after = state()
end = max(block for block, _ in between)
inside = sum(libc.malloc(size) < end for size in [size for size in sizes if size > 8192][:1000])
print(*before, *after, inside)
"""


def pages_of_later_calls(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], timeout=120, capture_output=True, text=True, check=True)
    # A call that begins before another thread has freed the memory of the last one takes more. On a busy machine
    # it takes some calls until enough is kept.
    return statistics.median(map(int, done.stdout.split()[20:]))


GLIBC = hasattr(ctypes.CDLL(None), "mallinfo2")
pytestmark = pytest.mark.skipif(not GLIBC, reason="the C library is not glibc, or one of before 2021")


def holes(kept: bool) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", HOLES.replace("{kept}", str(kept))],
        timeout=120,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


def test_freed_memory_is_used_again() -> None:
    assert pages_of_later_calls("kept") < 200 < 16_000 < pages_of_later_calls("given back")


def test_holes_are_filled_and_their_pages_given_back() -> None:
    used_before, free_before, used, free, inside = holes(kept=True)
    assert free_before > 200
    assert free < 80  # less than 8 KiB of each of the 10,000
    assert used < used_before - 100  # what was touched of them
    assert inside == 0


def test_holes_stay_where_freed_memory_is_given_back() -> None:
    _, free_before, _, free, inside = holes(kept=False)
    assert free == pytest.approx(free_before, rel=0.1)
    assert inside > 0
