"""The demonstration's scenes: two objects, what is said of them, where they lie, and how they are drawn.

All numbers in this file are our decision.
"""

import dataclasses
import itertools

import numpy as np
from PIL import Image, ImageDraw

from r2d2_jax.errors import UserError

COLOURS: dict[str, tuple[int, int, int]] = {
    "红": (220, 40, 40),
    "绿": (40, 160, 60),
    "蓝": (40, 80, 220),
    "黄": (245, 205, 30),
    "紫": (160, 50, 190),
    "黑": (25, 25, 25),
}
SHAPES = ("圆", "方块", "三角", "十字")
RING = "环"  # near a border, in any colour; no caption names it
SIZES: dict[str, float] = {"大": 0.19, "小": 0.115}  # half the object's extent, as a share of the picture's side
OPPOSITES: dict[str, str] = {"左边": "右边", "上面": "下面"}  # where the first object is -> where the second is
EXCHANGES = ("colour", "shape", "size")

# `near` is the place of the first object, `far` of the second. Both templates mean the same.
TEMPLATES = (
    "{first}在{second}{near}",
    "{near}{first}，{far}{second}",
)

_SUPERSAMPLING = 4
_SMALLEST_IMAGE = 32  # pixels; below it a small cross and a small square look alike


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object: `colour` a key of COLOURS, `shape` one of SHAPES, `size` a key of SIZES."""

    colour: str
    shape: str
    size: str

    @property
    def phrase(self) -> str:
        """The object as a phrase, such as 大红圆."""
        return f"{self.size}{self.colour}{self.shape}"


@dataclasses.dataclass(frozen=True)
class SyntheticScene:
    """Two objects; `relation` (左边 or 上面) is the place of `first`, seen from `second`."""

    first: SceneObject
    second: SceneObject
    relation: str

    @property
    def combination(self) -> str:
        """A key that no exchange of attributes between the two objects changes; the unit of the split."""
        pairs = (
            (self.first.colour, self.second.colour),
            (self.first.shape, self.second.shape),
            (self.first.size, self.second.size),
        )
        return "|".join("+".join(sorted(pair)) for pair in pairs)

    @property
    def name(self) -> str:
        """A unique name."""
        return f"{self.first.phrase}-{self.relation}-{self.second.phrase}"


def all_scenes() -> list[SyntheticScene]:
    """Returns every scene of two objects that differ in colour and in shape: 2,880, in a fixed order."""
    objects = [SceneObject(*parts) for parts in itertools.product(COLOURS, SHAPES, SIZES)]
    return [
        SyntheticScene(first, second, relation)
        for first, second in itertools.permutations(objects, 2)
        if first.colour != second.colour and first.shape != second.shape
        for relation in OPPOSITES
    ]


def exchanged(scene: SyntheticScene, what: str) -> SyntheticScene:
    """Returns the scene in which the two objects have exchanged their colours, shapes or sizes.

    Args:
        scene: the scene.
        what: one of EXCHANGES. With "size" and two objects of one size, the result is the scene itself.
    """
    first, second = scene.first, scene.second
    return dataclasses.replace(
        scene,
        first=dataclasses.replace(first, **{what: getattr(second, what)}),
        second=dataclasses.replace(second, **{what: getattr(first, what)}),
    )


def caption(scene: SyntheticScene, template: str) -> str:
    """Returns the caption of the scene by one of TEMPLATES."""
    return template.format(
        first=scene.first.phrase, second=scene.second.phrase, near=scene.relation, far=OPPOSITES[scene.relation]
    )


def captions(scene: SyntheticScene, rng: np.random.Generator) -> list[str]:
    """Returns the scene's two true captions, in random order."""
    return [caption(scene, TEMPLATES[position]) for position in rng.permutation(len(TEMPLATES))]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A shape on a picture: `x`, `y` of its middle and `radius`, half its extent, as shares of the side; RGB colour."""

    shape: str
    x: float
    y: float
    radius: float
    colour: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SceneLayout:
    """Where everything of a drawn scene is.

    ground: grey level behind everything. first, second: the two objects of the caption. ring: what no caption names.
    """

    ground: int
    first: Placement
    second: Placement
    ring: Placement


def laid_out(scene: SyntheticScene, rng: np.random.Generator) -> SceneLayout:
    """Chooses the places, sizes and shades of a scene, which vary a little with `rng`.

    The two objects never touch, and each stays in its own half of the picture.
    """
    ground = int(rng.integers(205, 246))
    first, second = (_placed(scene, item, middle, rng) for item, middle in ((scene.first, 0.25), (scene.second, 0.75)))
    return SceneLayout(ground, first, second, _placed_ring(scene, rng))


def _placed(scene: SyntheticScene, item: SceneObject, middle: float, rng: np.random.Generator) -> Placement:
    along = middle + rng.uniform(-0.035, 0.035)
    across = 0.5 + rng.uniform(-0.08, 0.08)
    x, y = (along, across) if scene.relation == "左边" else (across, along)
    radius = SIZES[item.size] * rng.uniform(0.93, 1.07)
    shade = rng.integers(-12, 13, size=3)
    colour = tuple(int(value) for value in np.clip(np.add(COLOURS[item.colour], shade), 0, 255))
    return Placement(item.shape, x, y, radius, colour)


def _placed_ring(scene: SyntheticScene, rng: np.random.Generator) -> Placement:
    """A ring of a random colour near one of the borders that the two objects never reach."""
    along, across = rng.uniform(0.12, 0.88), rng.choice((0.1, 0.9))
    x, y = (along, across) if scene.relation == "左边" else (across, along)
    return Placement(RING, x, y, 0.08, tuple(COLOURS.values())[rng.integers(len(COLOURS))])


def render(scene: SyntheticScene, rng: np.random.Generator, image_size: int = 48) -> Image.Image:
    """Draws the scene on a light grey ground, laid out with `rng`.

    Args:
        scene: what to draw.
        rng: source of the variation.
        image_size: side of the square picture in pixels, 32 or more.

    Returns:
        An RGB picture of image_size x image_size pixels.

    Raises:
        UserError: the picture would be too small to tell the shapes apart.
    """
    return drawn(laid_out(scene, rng), image_size)


def drawn(layout: SceneLayout, image_size: int = 48) -> Image.Image:
    """The picture of a layout; see `render`."""
    check_image_size(image_size)
    side = image_size * _SUPERSAMPLING
    picture = Image.new("RGB", (side, side), (layout.ground,) * 3)
    draw = ImageDraw.Draw(picture)
    for item in (layout.first, layout.second, layout.ring):
        _draw_shape(draw, item, side, item.colour)
    return picture.reduce(_SUPERSAMPLING)


def mask(item: Placement, image_size: int = 48) -> np.ndarray:
    """float32 [image_size image_size], the share of each pixel that a shape covers."""
    side = image_size * _SUPERSAMPLING
    picture = Image.new("L", (side, side))
    _draw_shape(ImageDraw.Draw(picture), item, side, 255)
    return np.asarray(picture.reduce(_SUPERSAMPLING), np.float32) / 255


def check_image_size(image_size: int) -> None:
    """Raises UserError if the picture would be too small to tell the shapes apart."""
    if image_size < _SMALLEST_IMAGE:
        raise UserError(f"image_size is {image_size}, but the shapes need {_SMALLEST_IMAGE} pixels or more: raise it")


def _draw_shape(draw: ImageDraw.ImageDraw, item: Placement, side: int, colour: tuple[int, ...] | int) -> None:
    x, y, radius = item.x * side, item.y * side, item.radius * side
    if item.shape == RING:
        box = [
            side * end
            for end in (item.x - item.radius, item.y - item.radius, item.x + item.radius, item.y + item.radius)
        ]
        draw.ellipse(box, outline=colour, width=round(0.035 * side))
    elif item.shape == "圆":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif item.shape == "方块":
        half = 0.9 * radius  # so that a square does not look larger than a circle
        draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    elif item.shape == "三角":
        draw.polygon(((x, y - radius), (x - radius, y + 0.85 * radius), (x + radius, y + 0.85 * radius)), fill=colour)
    else:
        arm = 0.3 * radius  # thin enough that a small cross never blurs into a circle
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
