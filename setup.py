"""Installs r2d2_jax; `pip install -e .` for the CPU, `.[gpu]` or `.[tpu]` for accelerators, `.[test]` for the tests."""

from pathlib import Path

from setuptools import find_packages, setup

ONNX = ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"]

setup(
    name="r2d2_jax",
    version="0.1.0",
    description="R2D2, Chinese image-text pre-training, in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["r2d2_jax", "r2d2_jax.*"]),
    install_requires=[
        "absl-py>=2.1",
        "beartype>=0.19",
        "cykooz-resizer>=4.0; platform_machine != 'aarch64'",  # not published ready-made for it; Pillow takes its place
        "flax>=0.10.4",
        "grain>=0.2.12",
        "array_record>=0.8",
        "ijson>=3.3",
        "importlib_resources>=6",  # tensorflow-datasets imports it without asking for it
        "jax>=0.7",
        "jaxtyping>=0.3",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.4",
        "pyarrow>=18",
        "rjieba>=0.2",
        "safetensors>=0.5",
        "simplejpeg>=1.8",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "transformers>=5.24",
    ],
    extras_require={
        "gpu": ["jax[cuda12]>=0.7"],
        "tpu": ["jax[tpu]>=0.7"],
        "beam": ["apache-beam>=2.77"],
        "convert": ["torch>=2.6"],
        "onnx": ["torch>=2.9", *ONNX],
        "test": ["pytest>=8", "ruff>=0.9", "mypy>=1.14", "psutil>=5.9", "torch==2.13.0", *ONNX],
    },
)
