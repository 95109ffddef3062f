"""The site: `make docs` builds it into docs/_build, and a warning is an error."""

from importlib import metadata

from rl_gumbel.logger import TAGS

project = "rl-gumbel"
author = "rl-gumbel contributors"
release = metadata.version("rl-gumbel")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

# Docstrings write `name` for code; one that is the name of something here becomes a link to it.
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False

# A test runs the notebooks; the site shows the outputs that they were committed with.
nb_execution_mode = "off"
myst_enable_extensions = ["substitution", "dollarmath"]
myst_heading_anchors = 3
myst_substitutions = {
    "tags": "\n".join(
        ["| name | what it is |", "|---|---|"]
        + [f"| `{name}` | {meaning} |" for name, meaning in TAGS.items()]
    )
}
