"""The things that a Chinese sentence names, and where in it they stand."""

import re
from dataclasses import dataclass

from r2d2_jax.errors import UserError

# What says of a thing which colour it has; to the segmenter it may be a noun, an adjective or a name.
_COLOUR = re.compile("[深浅淡暗亮鲜纯大小]*[红橙橘黄绿青蓝紫黑白灰棕褐粉金银彩]+色?|[米肉花三]色")
# What the dictionary leaves before some nouns: 一个男孩 is one word to it.
_COUNT = re.compile("[一两二三四五六七八九十几]+[个只条棵位名群块件张辆座朵匹]")
_ADJECTIVES = ("a", "ad", "ag", "an", "b", "z")
_MODIFIER, _LINK, _THING = range(3)


@dataclass(frozen=True)
class Entity:
    """A part of a text, `text[start:end]`."""

    text: str
    start: int
    end: int


def entities(text: str) -> list[Entity]:
    """Every thing that a sentence names, with the adjectives and colours right before it, each wording once.

    jieba's dictionary segments the sentence and gives parts of speech. Nouns in a row are one thing (粉色衣服,
    农场动物); adjectives and colours belong to the noun after them, also with 的 between (大红圆, 红色的圆). A noun
    before 的 is a thing of its own (女人的纹身). A colour alone is none. All of this is our decision.
    """
    import rjieba  # 0.1 s and 33 MiB

    found: dict[str, Entity] = {}
    run: list[tuple[int, int, int]] = []  # kind, start, end of words that may be one thing
    start = 0
    for word, tag in [*rjieba.tag(text, False), ("", "")]:
        end = start + len(word)
        kind = _kind(word, tag, run[-1][0] if run else None, text[slice(*run[-1][1:])] if run else "")
        if kind is None or (run and run[-1][0] == _THING and kind != _THING):
            if named := _named(text, run):
                found.setdefault(named.text, named)
            run = []
        if kind in (_MODIFIER, _THING) or (kind == _LINK and run):
            run.append((kind, start, end))
        start = end
    return list(found.values())


def _kind(word: str, tag: str, kind_before: int | None, word_before: str) -> int | None:
    if _COLOUR.fullmatch(word) or tag in _ADJECTIVES:
        return _MODIFIER
    if word == "的":
        return _LINK if kind_before == _MODIFIER else None
    # 三角 is a number to the dictionary; after a colour it cannot be one.
    if tag.startswith("n") or (tag == "eng" and len(word) > 1) or (tag == "m" and _COLOUR.fullmatch(word_before)):
        return _THING
    return None


def _named(text: str, run: list[tuple[int, int, int]]) -> Entity | None:
    things = [end for kind, _, end in run if kind == _THING]
    if not things:
        return None
    start, end = run[0][1], things[-1]
    counted = _COUNT.match(text, start, end)
    start = counted.end() if counted and counted.end() < end else start
    return Entity(text[start:end], start, end)


def entity_in(text: str, words: str) -> Entity:
    """Where a text says these words first; a longer wording (棕色的狗) reaches a later one.

    Raises:
        UserError: it does not, or there are no words.
    """
    start = text.find(words)
    if not words.strip() or start < 0:
        known = "、".join(entity.text for entity in entities(text))
        raise UserError(
            f"the entity {words!r} is not in the text {text!r}; name a part of it"
            + (f", such as one of {known}" if known else "")
        )
    return Entity(words, start, start + len(words))
