"""The conformance kit: what every plugin promises, as clauses that can be checked.

With pytest, an author subclasses `PluginConformance` in a test module::

    pytest_plugins = ["mlxengine.testing.pytest"]


    class TestConformance(PluginConformance):
        name = "markov"
        specimen = Specimen(path=SPECIMEN, examples=[...])

Without it, `check_plugin` does the same and returns what it found.
"""

from __future__ import annotations

from .conformance import Outcome, PluginConformance, check_plugin, clauses
from .parameters import parameters_beyond
from .specimen import Example, Specimen

__all__ = [
    "Example",
    "Outcome",
    "PluginConformance",
    "Specimen",
    "check_plugin",
    "clauses",
    "parameters_beyond",
]
