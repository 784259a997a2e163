"""Installs r2d2_jax; everything about it stands in pyproject.toml."""

from setuptools import setup

setup()
