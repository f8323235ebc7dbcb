"""A real inference on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext


def self_test(context: SelfTestContext) -> Sequence[Check]:  # noqa: ARG001
    """A convolution in time with a cache against the same over all frames, and nine frames through H.264."""
    return (_checked("denoising", _denoising), _checked("encoding", _encoding))


def _checked(name: str, run: Callable[[], str]) -> Check:
    try:
        detail = run()
    except Exception as error:
        return Check(
            name=name,
            status=CheckStatus.FAILED,
            detail=f"{type(error).__name__}: {error}",
            remedy='Install "mlxengine[video]" and a back end of mlx again.',
        )
    return Check(name=name, detail=detail)


def _denoising() -> str:
    import mlx.core as mx
    from mlx_video.models.wan.config import WanModelConfig
    from mlx_video.models.wan.model import WanModel

    config = WanModelConfig(
        dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=16, in_dim=4, out_dim=4, text_len=8
    )
    mx.random.seed(0)
    network = WanModel(config)
    key = mx.random.key(0)
    latents, text = mx.random.normal((4, 2, 4, 4), key=key), mx.random.normal((5, 16), key=key)
    time = mx.array([500.0, 500.0])
    one = network([latents], t=time[:1], context=[text], seq_len=8)[0]
    two = network([latents, latents], t=time, context=[text, text], seq_len=8)
    difference: Any = mx.max(mx.abs(mx.stack([one - two[0], one - two[1]]))).item()
    if not difference < 1e-2:
        raise ValueError(f"two rows change a step by {difference:.0e}")
    return "a tiny Wan runs; a row with guidance changes nothing"


def _encoding() -> str:
    import av
    import numpy as np

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as box:
        track = box.add_stream("libx264", rate=8)
        track.width = track.height = 16
        for value in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * value, np.uint8))
            box.mux(track.encode(frame))
        box.mux(track.encode(None))
    data.seek(0)
    with av.open(data) as box:
        count = sum(1 for _ in box.decode(video=0))
    if count != 9:
        raise ValueError(f"of 9 frames {count} came back")
    return "H.264 gives back what was encoded"


__all__ = ["self_test"]
