"""Run on several imitated devices: what encoder, Ranker and retrieval give on each mesh, as arrays in one file.

Started as `python encoder_worker.py OUTPUT.npz MESH...` with meshes such as 2x4 and JAX_NUM_CPU_DEVICES=8.
"""

import sys

import jax
import numpy as np
from encoder_cases import encoded, ranked
from retrieval_cases import retrieved

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.sharding import make_mesh


def main() -> None:
    """One array for each mesh and result."""
    output, *meshes = sys.argv[1:]
    found = {f"ranker {name}": value for name, value in ranked(jax.devices()).items()}
    for axes in meshes:
        mesh = make_mesh(MeshConfig(*map(int, axes.split("x"))))
        found |= {f"{axes} {name}": value for name, value in encoded(mesh).items()}
        found |= {f"retrieval {axes} {name}": value for name, value in retrieved(mesh).items()}
    np.savez(output, **found)


if __name__ == "__main__":
    main()
