"""Which fonts draw a label, and what is said where none can."""

import logging
from types import SimpleNamespace

import pytest

from r2d2_jax.plots import fonts
from r2d2_jax.plots.fonts import LATIN, families_for, lacking


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Made-up fonts beside Matplotlib's own: family -> the characters it has."""
    made = {"Aaa": "é", "Noto Sans CJK SC": "狗猫", "Zzz": "猫龘"}
    own = fonts._glyphs
    monkeypatch.setattr(fonts, "_glyphs", lambda name: frozenset(map(ord, made[name])) if name in made else own(name))
    monkeypatch.setattr(fonts, "_candidates", lambda: ["Noto Sans CJK SC", "Aaa", "Zzz"])
    fonts._say_once.cache_clear()
    return made


def test_what_is_drawn_by_matplotlibs_own_font_needs_no_other() -> None:
    assert families_for(["losses, %", "R@1 é\n²"]) == [LATIN]
    assert lacking(frozenset("a狗"), LATIN) == {"狗"}


def test_the_preferred_font_that_has_the_characters(installed: dict[str, str]) -> None:
    assert families_for(["a狗"]) == [LATIN, "Noto Sans CJK SC"]
    assert families_for(["a狗", "龘"]) == [LATIN, "Noto Sans CJK SC", "Zzz"]


def test_a_character_that_no_font_has_is_said_once(installed: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert families_for(["狗鑫"]) == [LATIN, "Noto Sans CJK SC"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no installed font has 鑫: boxes stand for them" in record.getMessage()
    assert "install one that does" in record.getMessage()


def test_a_font_for_chinese_comes_along() -> None:
    assert "Noto Sans SC" in fonts._candidates()
    assert not lacking(frozenset("一只熊猫在吃竹子，龘"), "Noto Sans SC")
    assert len(families_for(["一只熊猫在吃竹子"])) == 2  # and no warning


def test_without_the_package_there_are_the_installed_fonts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "PACKAGE", "there-is-no-such-package")
    before = len(fonts.fontManager.ttflist)
    with caplog.at_level(logging.DEBUG):
        fonts._add_packaged.__wrapped__()
    assert len(fonts.fontManager.ttflist) == before
    assert "there-is-no-such-package brings no font" in caplog.text


def test_boxes_for_everything_are_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's own last resort claims every character; with it no warning would ever come."""
    names = ["Last Resort High-Efficiency", "Zzz", LATIN]
    monkeypatch.setattr(fonts.fontManager, "ttflist", [SimpleNamespace(name=name) for name in names])
    assert fonts._candidates() == ["Zzz"]


def test_installed_fonts_are_read_and_a_damaged_one_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LATIN not in fonts._candidates()
    assert ord("a") in fonts._glyphs(LATIN)

    def broken(path: str) -> None:
        raise RuntimeError("FT_Open_Face failed")

    monkeypatch.setattr(fonts, "get_font", broken)
    assert fonts._glyphs.__wrapped__(LATIN) == frozenset()
