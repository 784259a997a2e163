"""How much of a model's attention for an object lies on that object, in the demonstration's validation scenes.

    python benchmarks/attention_on_objects.py --checkpoint=runs/demo
    python benchmarks/attention_on_objects.py --checkpoint=runs/demo --pictures=pictures

Both objects of each scene are looked for by their words in the scene's first caption (大红圆). Printed is the share of
the map inside of the object, divided by the object's share of the picture: 1 is what a map that knows nothing has, and
about 4.5 what a map of how much of each of 4 x 4 patches the object covers has. With --pictures the first scenes with a
red circle are drawn, too, by the default reading and by occlusion.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import r2d2_jax
from r2d2_jax.data.text.entities import Entity, entity_in
from r2d2_jax.evaluation.attention import Reading, attention_maps, attention_share, on_picture
from r2d2_jax.inference import Ranker
from r2d2_jax.plots.heat_maps import draw_heat_maps
from r2d2_jax.preparation.demonstration import laid_out_validation, split_scenes
from r2d2_jax.preparation.scenes import drawn, mask

ENOUGH = 2.0  # of the ratio: what the table counts
PICTURES = 8


@dataclass(frozen=True)
class Target:
    """An object of a scene: the picture uint8 [h w 3], its caption, the words for the object and where it is [h w]."""

    picture: np.ndarray
    text: str
    entity: Entity
    mask: np.ndarray


def main() -> None:
    """Prints a line for each reading and layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="A model that was trained on the demonstration.")
    parser.add_argument("--scenes", type=int, default=320, help="How many validation scenes, of two objects each.")
    parser.add_argument("--pictures", type=Path, help=f"Folder for {PICTURES} pictures of scenes with a red circle.")
    asked = parser.parse_args()
    model = r2d2_jax.load(asked.checkpoint, batch_size=128)
    found = targets(model.config.image.image_size, asked.scenes)
    print(f"{'reading':18s} layer   mean    10 %    50 %    90 %  at least {ENOUGH:g}  nothing")
    for reading in Reading:
        for layer in layers_of(model, reading):
            line = summary(ratios(model, found, reading, layer))
            print(f"{reading.name.lower():18s} {layer or '-':>5} {line}", flush=True)
    if asked.pictures:
        for number, path in enumerate(draw(model, found, asked.pictures)):
            print(number + 1, path)


def layers_of(model: Ranker, reading: Reading) -> Sequence[int | None]:
    """The layers that a reading has; None where it asks the whole model."""
    last = model.config.cross.layers - (reading is Reading.GRADIENT_WEIGHTED)
    return [None] if reading is Reading.OCCLUSION else range(1, last + 1)


def targets(image_size: int, scenes: int) -> list[Target]:
    """Both objects of the first held-out scenes of an even choice, with the pictures of the validation split."""
    _, held_out = split_scenes()
    chosen = [held_out[place] for place in np.linspace(0, len(held_out) - 1, scenes).round().astype(int)]
    found = []
    for scene, layout, (text, _) in laid_out_validation(0, chosen):
        picture = np.asarray(drawn(layout, image_size))
        for item, place in ((scene.first, layout.first), (scene.second, layout.second)):
            found.append(Target(picture, text, entity_in(text, item.phrase), mask(place, image_size)))
    return found


def ratios(
    model: Ranker, found: Sequence[Target], reading: Reading = Reading.RELATIVE, layer: int | None = None
) -> np.ndarray:
    """float [targets], the `ratio` of the `attention_share` of each."""
    pictures, texts, entities = zip(*((each.picture, each.text, each.entity) for each in found), strict=True)
    maps = attention_maps(model, pictures, texts, entities, reading, layer)
    heat = [on_picture(each.patches, *target.mask.shape) for each, target in zip(maps, found, strict=True)]
    return np.array([attention_share(each, target.mask).ratio for each, target in zip(heat, found, strict=True)])


def summary(values: np.ndarray) -> str:
    """Mean, quantiles, and the shares of the maps that are good enough and that are empty."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    enough, nothing = 100 * np.mean(values >= ENOUGH), 100 * np.mean(values == 0)
    return f"{values.mean():6.2f}  {low:6.2f}  {middle:6.2f}  {high:6.2f}  {enough:8.1f} %  {nothing:5.1f} %"


def draw(model: Ranker, found: Sequence[Target], folder: Path) -> list[Path]:
    """Both objects of the first scenes in which one is a red circle."""
    pairs = [found[place : place + 2] for place in range(0, len(found), 2)]
    red = [pair for pair in pairs if any("红圆" in each.entity.text for each in pair)][:PICTURES]
    paths = []
    for number, pair in enumerate(red):
        asked = pair[0].picture, [pair[0].text] * 2, [each.entity for each in pair]
        heat, titles = [], []
        for reading in (Reading.RELATIVE, Reading.OCCLUSION):
            for target, found_map in zip(pair, attention_maps(model, *asked, reading), strict=True):
                heat.append(on_picture(found_map.patches, *target.mask.shape))
                ratio = attention_share(heat[-1], target.mask).ratio
                titles.append(f"{target.entity.text} {ratio:.1f}\n{reading.name.lower()}")
        path = folder / f"red_circle_{number + 1}.png"
        paths.append(draw_heat_maps(pair[0].picture, heat, titles, pair[0].text, path))
    return paths


if __name__ == "__main__":
    main()
