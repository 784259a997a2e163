"""Where the objects of a drawn scene are."""

import numpy as np
import pytest

from r2d2_jax.preparation.demonstration import laid_out_validation, split_scenes
from r2d2_jax.preparation.scenes import drawn, mask


@pytest.mark.parametrize("image_size", [48, 64])
def test_masks_cover_what_is_drawn_and_nothing_else(image_size: int) -> None:
    """A pixel is the ground, or the mix of a shape and the ground that the shape's mask says."""
    _, held_out = split_scenes()
    for _, layout, _ in laid_out_validation(0, held_out[::16]):
        expected = np.full((image_size, image_size, 3), layout.ground, np.float32)
        for item in (layout.first, layout.second, layout.ring):
            covered = mask(item, image_size)
            assert covered.dtype == np.float32
            assert covered.min() == 0
            assert covered.max() == 1
            expected += covered[..., None] * (np.array(item.colour) - layout.ground)
        assert np.abs(np.asarray(drawn(layout, image_size)) - expected).max() <= 2  # of rounding, twice


def test_objects_lie_apart_in_the_halves_that_the_relation_says() -> None:
    _, held_out = split_scenes()
    for scene, layout, _ in laid_out_validation(0, held_out[::16]):
        first, second = (mask(item) for item in (layout.first, layout.second))
        assert not np.any(first * second)
        across = (lambda covered: covered.T) if scene.relation == "左边" else (lambda covered: covered)
        assert not np.any(across(first)[24:])
        assert not np.any(across(second)[:24])
