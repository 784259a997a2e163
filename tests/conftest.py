"""Settings of every test: float32 on the CPU, whatever devices there are."""

import jax

jax.config.update("jax_platforms", "cpu")
