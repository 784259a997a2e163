"""A training reuses the memory of its last step; by default glibc returns it and takes it anew."""

import ctypes
import statistics
import subprocess
import sys

import pytest

# Prints how many pages the system hands out in each of some calls whose temporaries have 64 MiB, or 16,384 pages.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from r2d2_jax.launch.host_memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
square = jax.jit(lambda x: jnp.exp(x @ x.T) @ x)
x = jnp.ones((4096, 2))
for call in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    square(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_later_calls(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], timeout=120, capture_output=True, text=True, check=True)
    # A call that begins before another thread has freed the memory of the last one takes more. On a busy machine
    # it takes some calls until enough is kept.
    return statistics.median(map(int, done.stdout.split()[20:]))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    assert pages_of_later_calls("kept") < 200 < 16_000 < pages_of_later_calls("given back")
