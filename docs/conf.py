"""The site, by Sphinx: ``make docs`` builds it into docs/_build/html, where it needs no network."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import manual_mlp  # noqa: E402

project = "manual_mlp"
author = "the authors of manual_mlp"
project_copyright = f"{author}, MIT licence"
version = release = manual_mlp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "hooks"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"manual_mlp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# So that a line of code of 90 columns fits.
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small--2)"}}
html_show_sourcelink = html_copy_source = False
# A page from a folder cannot fetch others, which is how their text would come into the results of a search.
html_show_search_summary = False
html_math_renderer = "mathml"

# Every name that is referred to is there, but for those of other packages, whose lists of names are on a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:\w+", r"(torch|pathlib|dataclasses|collections)\..*|(nn\.)?Module|Tensor|P")]

# Markdown as GitHub reads it.
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]
myst_url_schemes = {"http": None, "https": None, "mailto": None}
# What hooks.py makes of links out of docs/.
myst_url_schemes |= {"site": {"url": "{{path}}"}, "place": {"url": "{{path}}#{{fragment}}"}}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape"]
