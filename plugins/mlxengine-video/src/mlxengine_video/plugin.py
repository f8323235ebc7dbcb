"""The hooks. Importing this imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlxengine import Command, Feature, Kind, hookimpl

from . import features

if TYPE_CHECKING:
    from mlxengine import (
        Check,
        Claim,
        Event,
        LoadContext,
        Loaded,
        ModelCard,
        ModelConfiguration,
        Request,
        RunContext,
        SelfTestContext,
    )


@hookimpl
def list_kinds() -> Sequence[Kind]:
    return [
        Kind(
            name="video",
            summary="models that make video",
            handle="mlxengine_video.handle:VideoHandle",
            async_handle="mlxengine_video.handle:AsyncVideoHandle",
            workload="mlxengine_video.types:VideoWorkload",
            usage="mlxengine_video.types:VideoUsage",
            run="mlxengine_video.kind:RUN",
            bench="mlxengine_video.kind:BENCH",
            mock="mlxengine_video.kind:VideoMock",
            degrade="mlxengine_video.kind:degrade",
            pipelines=["text-to-video", "image-to-video"],
            install="mlxengine[video]",
            libraries=["mlx-video-with-audio", "av"],
        )
    ]


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    return features.FEATURES


@hookimpl
def list_models() -> Sequence[ModelConfiguration]:
    from . import models

    return models.MODELS


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    from ._claim import claim

    return claim(card)


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded:
    from . import _load

    return _load.load(card, context)


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from .types import VideoRequest

    if not isinstance(request, VideoRequest):
        return None
    from ._generate import VideoModel
    from ._generate import generate as serve

    return serve(model, request, context) if isinstance(model, VideoModel) else None


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="video",
            summary="make a video from a prompt",
            parser="mlxengine_video.cli:configure",
            target="mlxengine_video.cli:run",
        )
    ]


@hookimpl
def self_test(context: SelfTestContext) -> Sequence[Check]:
    from ._self_test import self_test as run

    return run(context)
