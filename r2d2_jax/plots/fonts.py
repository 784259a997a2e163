"""Fonts that have the characters of labels: Matplotlib's own has none that are Chinese, and a package brings one."""

import functools
import importlib.metadata
import logging
from collections.abc import Iterable

from matplotlib.font_manager import fontManager, get_font

from r2d2_jax.errors import FIRST_NAMES

logger = logging.getLogger(__name__)

LATIN = "DejaVu Sans"  # comes with Matplotlib
LAST_RESORT = "Last Resort"  # comes with Matplotlib, too, and has a box for every character that there is
# Noto Sans SC, which this package brings along; of its code nothing is imported.
PACKAGE, FILE = "zhplot", "zhplot/fonts/NotoSansSC-Regular.ttf"
# Preferred for Chinese, where they are installed; after them any other font that has the characters.
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans CJK JP"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Heiti SC"),
    *("Hiragino Sans GB", "Arial Unicode MS", "Droid Sans Fallback"),
)


def families_for(texts: Iterable[str]) -> list[str]:
    """The font families that draw these texts, the first for most characters, and the others for what that one lacks.

    Where no installed font has a character, a warning says which it is and what to install: it would be drawn as a box.
    """
    families = [LATIN]
    missing = lacking(frozenset("".join(texts)), LATIN)
    for family in _candidates() if missing else ():
        still = lacking(missing, family)
        if still != missing:
            families.append(family)
            missing = still
        if not missing:
            break
    if missing:
        _say_once(missing)
    return families


@functools.lru_cache(maxsize=64)
def _say_once(missing: frozenset[str]) -> None:
    """Of several pictures with the same labels, only the first says what it lacks."""
    shown = " ".join(sorted(missing)[:FIRST_NAMES]) + (" ..." if len(missing) > FIRST_NAMES else "")
    logger.warning(
        "no installed font has %s: boxes stand for them in the pictures; install one that does, and draw again",
        shown,
    )


def lacking(characters: frozenset[str], family: str) -> frozenset[str]:
    """Those of the characters that a family has no glyph for; line ends need none."""
    glyphs = _glyphs(family)
    return frozenset(character for character in characters if character != "\n" and ord(character) not in glyphs)


def _candidates() -> list[str]:
    """Installed families, those for Chinese first."""
    _add_packaged()
    installed = {font.name for font in fontManager.ttflist if not font.name.startswith(LAST_RESORT)}
    return [*(name for name in CHINESE if name in installed), *sorted(installed.difference(CHINESE, {LATIN}))]


@functools.cache
def _add_packaged() -> None:
    """Makes the font of `PACKAGE` known to Matplotlib."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
        fontManager.addfont(str(path))
    except (importlib.metadata.PackageNotFoundError, OSError, RuntimeError):
        logger.debug("%s brings no font", PACKAGE, exc_info=True)


@functools.lru_cache(maxsize=64)
def _glyphs(family: str) -> frozenset[int]:
    """The code points that a family's upright font has glyphs for; none if its file cannot be read."""
    files = {font.style: font.fname for font in fontManager.ttflist if font.name == family}
    try:
        return frozenset(get_font(files.get("normal") or next(iter(files.values()))).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged or foreign font is one that has nothing
        return frozenset()
