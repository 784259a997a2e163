"""Full-text search of pages in English and Chinese, in one index.

Chinese has no spaces between words, so Sphinx's English search takes all characters up to the next comma for one word.
Here, as is usual for full-text indexes, each Chinese character and each pair of neighbouring ones is a word, and a
question is found on pages that have all of its pairs. No dictionary has to know its words, and pages and questions,
which are split in two programming languages, are split alike. Sphinx's own Chinese search cuts pages by
jieba's dictionary, but not the questions: nothing is found but single words of that dictionary (our decision).
"""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # as both Python and JavaScript write it
_PARTS = re.compile(rf"[{_CHINESE}]+|[^\W{_CHINESE}]+")
_SPLITTER = rf"""
var splitQuery = (query) => {{
  const parts = query.match(/[{_CHINESE}]+|(?:(?![{_CHINESE}])[\p{{Letter}}\p{{Number}}_\p{{Emoji_Presentation}}])+/gu);
  const pairs = (part) => [...part.slice(1)].map((character, place) => part[place] + character);
  return (parts || []).flatMap((part) => /^[{_CHINESE}]{{2}}/.test(part) ? pairs(part) : [part]);
}};
"""


class SearchEnglishAndChinese(SearchEnglish):
    """Sphinx's English search, which also splits Chinese."""

    lang = "en-zh"
    js_splitter_code = _SPLITTER

    def split(self, input: str) -> list[str]:
        """The words of a text; of Chinese its characters, and all pairs of neighbours."""
        words: list[str] = []
        for part in _PARTS.findall(input):
            if re.match(f"[{_CHINESE}]", part):
                words += [*part, *map("".join, zip(part, part[1:], strict=False))]
            else:
                words.append(part)
        return words


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes the language known; `html_search_language` chooses it."""
    app.add_search_language(SearchEnglishAndChinese)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
