"""What making a video takes, told by configurations and headers alone. Pure.

Working space is counted in features: numbers of a layer at its finest resolution, over all that is computed
at once. How many of them live together was measured (`benchmarks/video/memory.py`).
"""

from __future__ import annotations

from attrs import frozen
from mlxengine import MemoryEstimate

from ._layout import Layout

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_TEXT = 512  # tokens of a prompt
_TEXT_COPIES = 8
_TEXT_SCORES = 7  # of the prompt and the negative one, which are read together
_HIDDEN_COPIES = 8
_INNER_COPIES = 2
# All of a block, which a GPU holds until the block is done: counted by its layers, of which what is float32
# counts twice. Between blocks nothing is launched.
_BLOCK_COPIES = 66
# Modulations of each place, in float32, where places differ in how noisy they are: what all blocks are told,
# what it was made of, and a block's own.
_MODULATIONS = 3 * 6
_DECODER_COPIES = 17
_KERNEL = 27  # places that a convolution in time and space sees: on a CPU they are written out
_FINEST = 2  # channels before the last convolutions, in those after


@frozen(kw_only=True)
class Shape:
    """What is made, and where.

    Args:
        size: (width, height) in pixels.
        frames: of the video.
        rows: what the denoiser is shown at once: 2 where there is guidance.
        on_cpu: whether everything is in float32, and attention's scores are written out.
        staged: whether each part is in memory for its stage alone.
        dtype: the number format of the denoiser and the text encoder; ``"auto"`` goes by the device.
        pictured: whether it starts from a picture.
    """

    size: tuple[int, int]
    frames: int
    rows: int = 2
    on_cpu: bool = False
    staged: bool = False
    dtype: str = "auto"
    pictured: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number of the denoiser."""
        return _WIDTHS.get(self.dtype, 4 if self.on_cpu else 2)


def estimate(layout: Layout, shape: Shape) -> MemoryEstimate:
    """Bytes of the weights that stay, and of what the largest stage of a video takes beside them."""
    weights = {part: count * (4 if part == "vae" else shape.width) for part, count in layout.numbers.items()}
    denoising = _denoising(layout, shape)
    stages = {
        "text_encoder": _reading(layout, shape),
        "transformer": denoising,
        "transformer_2": denoising,
        "vae": _decoding(layout, shape),
    }
    if not shape.staged:
        return MemoryEstimate(weights=sum(weights.values()), workspace=max(stages.values()))
    return MemoryEstimate(weights=0, workspace=max(weights[part] + stages[part] for part in weights))


def _reading(layout: Layout, shape: Shape) -> int:
    hidden, inner, heads = layout.text
    scores = _TEXT_SCORES * heads * _TEXT * _TEXT * 4
    return _TEXT * (_TEXT_COPIES * hidden + 3 * inner) * shape.width + scores


def _denoising(layout: Layout, shape: Shape) -> int:
    tokens = layout.tokens(shape.size, shape.frames)  # rows are computed one after the other
    told = (2 * shape.rows * _TEXT + layout.text[0]) * layout.hidden * shape.width
    if shape.pictured and not layout.shape.needs_picture:  # the picture is the first frame, without noise
        told += _MODULATIONS * tokens * layout.hidden * 4
    if not shape.on_cpu:
        block = _BLOCK_COPIES * layout.hidden + _INNER_COPIES * layout.inner
        return tokens * block * shape.width + told
    features = tokens * (_HIDDEN_COPIES * layout.hidden + _INNER_COPIES * layout.inner) * shape.width
    return features + layout.heads * tokens * tokens * 4 + told


def _decoding(layout: Layout, shape: Shape) -> int:
    """A place in time at once, which stands for so many frames; the length of the video does not count."""
    width, height = shape.size
    places = (width // layout.finest) * (height // layout.finest)
    together = min(layout.shape.time_stride, shape.frames)
    copies = _DECODER_COPIES + (_KERNEL if shape.on_cpu else 0)
    return copies * together * places * _FINEST * layout.decoded * 4


__all__ = ["Shape", "estimate"]
