"""The documentation site: the pages of the repository as they are, and an API reference from docstrings.

    sphinx-build -q -W --keep-going -c docs/site . build/site

The source folder is the repository, so that every link between its pages means the same there and on the site. Nothing
is fetched, neither to build the site nor to read it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import r2d2_jax

project = "r2d2_jax"
version = release = r2d2_jax.__version__
html_title = f"r2d2_jax {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "chinese_search",
    "markdown_docstrings",
    "source_pages",
    "start_page",
]
root_doc = "README"
include_patterns = ["README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"]

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a changelog begins each version with the same headings

smartquotes = False  # "--flag" is no dash

autodoc_default_options = {"exclude-members": "replace"}  # of every flax dataclass
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False

highlight_language = "none"  # of blocks that name no language: tables and trees
html_theme = "furo"
html_copy_source = False
html_search_language = "en-zh"  # of chinese_search
html_theme_options = {"navigation_with_keys": True}
