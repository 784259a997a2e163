"""A made-up set of classes: each is a scene of the demonstration, named by its caption and drawn several times.

`python tests/scene_classes.py FOLDER` writes the pictures of a set in the form of `--corpus=classification`, for
measurements with a model of the demonstration.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r2d2_jax.preparation.demonstration import split_scenes
from r2d2_jax.preparation.scenes import TEMPLATES, caption, render


@dataclass(frozen=True)
class SceneClasses:
    """folder: of the classes' folders, or of the prepared dataset. names: of the classes. files: of the pictures."""

    folder: Path
    names: tuple[str, ...]
    files: tuple[Path, ...]


def write_scene_classes(folder: Path, classes: int, images: int, image_size: int = 48) -> SceneClasses:
    """Writes label_cn.txt and test/000, test/001, ... with `images` pictures each, of scenes that are held out."""
    _, held_out = split_scenes()
    chosen = [held_out[place] for place in np.random.default_rng(0).permutation(len(held_out))[:classes]]
    files = []
    for number, scene in enumerate(chosen):
        below = folder / "test" / f"{number:03d}"
        below.mkdir(parents=True)
        for image in range(images):
            files.append(below / f"{image}.png")
            render(scene, np.random.default_rng((number, image)), image_size).save(files[-1])
    names = tuple(caption(scene, TEMPLATES[0]) for scene in chosen)
    (folder / "label_cn.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return SceneClasses(folder, names, tuple(files))


if __name__ == "__main__":
    print(write_scene_classes(Path(sys.argv[1]), classes=50, images=20).folder)
