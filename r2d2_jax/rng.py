"""Named random streams: every draw is a function of the run's key, the stream's name and the step, and of nothing else.

So a resumed run draws what an undisturbed one would have drawn, and adding a stream changes no other.
"""

import zlib

import jax


def stream(key: jax.Array, name: str, step: jax.Array | int) -> jax.Array:
    """The random key of stream `name` at `step`.

    Args:
        key: the run's key, made from the configured seed.
        name: the stream, such as "mask" or "hard_negative".
        step: the train step, an int32 scalar.
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)
