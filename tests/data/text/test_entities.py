"""Which things sentences name, as the demonstration and captions of photographs write them."""

import pytest

from r2d2_jax.data.text.entities import Entity, entities, entity_in
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.demonstration import split_scenes
from r2d2_jax.preparation.scenes import TEMPLATES, caption

SENTENCES = {
    "一只熊猫在吃竹子": ["熊猫", "竹子"],
    "红色的圆": ["红色的圆"],
    "两只狗在路上打架。": ["狗"],
    "一只白色的狗在沙滩上用一个橘色的球玩。": ["白色的狗", "沙滩", "橘色的球"],
    "一个穿着粉红色连衣裙的小女孩走进一个木屋里。": ["粉红色连衣裙", "小女孩", "木屋"],
    "一个人捡起一个大石头。": ["人", "大石头"],
    "一辆白色汽车停在草地上": ["白色汽车", "草地"],
    "两个中年妇女的纹身": ["中年妇女", "纹身"],
    "穿着粉色衣服的小朋友。": ["粉色衣服", "小朋友"],
    "一只棕色的狗在咬一只黑色的狗": ["棕色的狗", "黑色的狗"],
    "一只棕色和一只黑色的狗互相玩耍。": ["黑色的狗"],
    "狗和狗在草地上。": ["狗", "草地"],
    "一个年轻的女人和一个男孩": ["年轻的女人", "男孩"],
    "三只羊": ["羊"],
    "a dog 在草地上": ["dog", "草地"],
    "互相玩耍。": [],
    "": [],
    "\u3000 \n": [],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_things_with_what_is_said_of_them(text: str) -> None:
    found = entities(text)
    assert [entity.text for entity in found] == SENTENCES[text]
    assert all(text[entity.start : entity.end] == entity.text for entity in found)


def test_every_caption_of_held_out_scenes_names_its_two_objects() -> None:
    for scene in split_scenes()[1]:
        for template in TEMPLATES:
            found = [entity.text for entity in entities(caption(scene, template))]
            assert found == [scene.first.phrase, scene.second.phrase]


def test_words_are_found_where_they_come_first() -> None:
    text = "一只棕色的狗在咬一只黑色的狗"
    assert entity_in(text, "狗") == Entity("狗", 5, 6)
    assert entity_in(text, "黑色的狗") == Entity("黑色的狗", 10, 14)


@pytest.mark.parametrize("words", ["猫", "", " "])
def test_words_that_are_not_there(words: str) -> None:
    with pytest.raises(UserError, match="is not in the text '狗在草地上'; name a part of it, such as one of 狗、草地"):
        entity_in("狗在草地上", words)
