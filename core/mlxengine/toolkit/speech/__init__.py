"""How models speak, on any back end: reasoning and tool calls in the notations of their chat templates.

`Dialect` knows a model's marks, `check` refuses what it cannot do, `shown` is the request as its chat
template is to see it, and `Answering` holds the answers to what the request asks and parts them into events.
Nothing here needs mlx-lm or mlx-vlm; a tokenizer of transformers is enough.
"""

from ._answering import Answering, check, shown
from ._dialect import HARMONY, MUSE, Dialect, Headers
from ._formats import FORMATS, Format
from ._router import Router

__all__ = [
    "FORMATS",
    "HARMONY",
    "MUSE",
    "Answering",
    "Dialect",
    "Format",
    "Headers",
    "Router",
    "check",
    "shown",
]
