"""The hooks. The entry point names this module, so it imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlxengine import Claim, Command, Fit, Kind, MemoryEstimate, Route, hookimpl

if TYPE_CHECKING:
    from mlxengine import Event, LoadContext, Loaded, ModelCard, Request, Workload


@hookimpl
def list_kinds() -> Sequence[Kind]:
    return [
        Kind(
            name="vad",
            summary="voice activity detectors",
            handle="mlxengine_audio.handle:SpeechHandle",
            async_handle="mlxengine_audio.handle:AsyncSpeechHandle",
            usage="mlxengine_audio.types:Heard",
            run="mlxengine_audio.kind:RUN",
            bench="mlxengine_audio.kind:BENCH",
            mock="mlxengine_audio.kind:SpeechMock",
            pipelines=["voice-activity-detection"],
            install="mlxengine-audio",
            libraries=["mlx-audio"],
        )
    ]


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    if card.architecture != "silero_vad":
        return None

    def estimate(workload: Workload) -> MemoryEstimate:
        return MemoryEstimate(weights=card.weight_bytes, workspace=workload.batch << 20)

    return Claim(
        kind="vad",
        fit=Fit.NATIVE,
        files=("config.json", "model.safetensors"),
        capabilities=frozenset({"voice_activity"}),
        estimate=estimate,
        reason="config.json says model_type silero_vad",
    )


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request) -> Iterator[Event | None] | None:
    from .types import ListenRequest

    if not isinstance(request, ListenRequest):
        return None
    from ._generate import generate
    from ._load import Detector

    return generate(model, request) if isinstance(model, Detector) else None


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="listen",
            summary="Find speech in a WAV file.",
            parser="mlxengine_audio.cli:configure",
            target="mlxengine_audio.cli:run",
        ),
    ]


@hookimpl
def list_routes() -> Sequence[Route]:
    return [Route(path="/v1/audio/activity", target="mlxengine_audio.route:activity")]
