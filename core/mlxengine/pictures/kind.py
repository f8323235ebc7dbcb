"""The kind that makes pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract.kinds import Kind, Task

if TYPE_CHECKING:
    from ..contract.configuration import ModelCard


def draws(card: ModelCard) -> bool:
    """Whether a model looks like a pipeline of diffusers'."""
    return any(item.path == "model_index.json" for item in card.files)


KINDS = (
    Kind(
        name="diffusion",
        summary="models that make pictures",
        handle="mlxengine.pictures.handle:ImageHandle",
        async_handle="mlxengine.pictures.handle:AsyncImageHandle",
        workload="mlxengine.pictures.workload:PictureWorkload",
        usage="mlxengine.contract.tokens:TokenUsage",
        run="mlxengine.pictures.verbs:RUN",
        bench="mlxengine.pictures.verbs:BENCH",
        mock="mlxengine.pictures.mock:PictureMock",
        degrade="mlxengine.pictures.degrade:degrade",
        looks="mlxengine.pictures.kind:draws",
        pipelines=["text-to-image"],
        tasks=[
            Task(name="turbo", words=r"turbo|schnell|lightning|klein|few steps|four steps|one to four steps"),
            Task(name="edit", words=r"edit|kontext"),
        ],
        install="mlxengine[diffusion]",
        libraries=["diffuse-mlx"],
    ),
)
