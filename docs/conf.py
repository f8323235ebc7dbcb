"""Sphinx: ``make docs`` builds ``site/``; a warning is an error."""

from mlxengine import __version__
from mlxengine.toolkit import backend as _backend  # noqa: F401 (a fast BLAS comes before mlx)

project = "MLXEngine"
author = "the MLXEngine authors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "index"
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = f"MLXEngine {__version__}"
html_show_copyright = False
html_static_path = ["pictures", "static"]
html_css_files = ["tables.css"]
templates_path: list[str] = []

# Single backticks in docstrings name an object of ours, or of Python's; the rest stays text.
default_role = "py:obj"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_ambiguous"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
