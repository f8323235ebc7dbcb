"""Which files of a repository make up a Stable Diffusion model, and whether they can run. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen
from mlxengine import ModelCard
from mlxengine.contract.configuration import TensorInfo
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, UnsupportedArchitectureError
from mlxengine.readonly import freeze

from . import single_file
from .config import clip_problems, unet_problems, vae_problems
from .scheduler_config import NoiseSettings

PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionInpaintPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLInpaintPipeline": True,
}
"""Pipeline classes, and whether they have two text encoders."""

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}


@frozen(kw_only=True)
class Layout:
    """A Stable Diffusion model: its parts, their weight files, and what is wrong with it.

    Args:
        documents: the configurations by path, those of the repository or those that a single file tells.
        single: the one file that holds everything; ``None`` for a repository of diffusers' form.
    """

    xl: bool
    weights: Mapping[str, tuple[str, ...]]
    documents: Mapping[str, Any]
    single: str | None = None
    problem: MLXEngineError | None

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks, in the order in which a picture needs them."""
        return tuple(self.weights)

    @property
    def files(self) -> tuple[str, ...]:
        """Glob patterns of everything that loading reads."""
        if self.single is not None:
            return (self.single, "tokenizer/*")
        documents = ["model_index.json", "scheduler/*.json", "tokenizer/*", "*/config.json"]
        documents += ["tokenizer_2/*"] if self.xl else []
        return (*documents, *(name for names in self.weights.values() for name in names))

    def tensors(self, card: ModelCard, part: str) -> list[TensorInfo]:
        """The tensors of a part, by the headers of its files."""
        found = [item for item in card.tensors if item.file in self.weights[part]]
        if self.single is None:
            return found
        return [item for item in found if single_file.part_named(item.name, xl=self.xl) == part]

    def document(self, path: str) -> Mapping[str, Any]:
        """A JSON object among the documents; empty if there is none."""
        found = self.documents.get(path)
        return found if isinstance(found, Mapping) else {}


def read(card: ModelCard) -> Layout | None:
    """Look at a card; ``None`` if it is no Stable Diffusion model."""
    index = document(card, "model_index.json")
    if not index and (files := single_file.checkpoints(card)):
        return _single(card, files)
    xl = PIPELINES.get(str(index.get("_class_name")))
    if xl is None:
        return None
    parts = _parts(xl=xl)
    tokenizers = ["tokenizer", *(["tokenizer_2"] if xl else [])]
    weights = {part: weight_files(card, part) for part in parts}
    wrong = [reason for name in (*parts, *tokenizers) if (reason := _wrong_class(index, name))]
    missing = [f"{part}/config.json" for part in parts if not document(card, f"{part}/config.json")]
    found = Layout(xl=xl, weights=weights, documents=card.documents, problem=None)
    problem: MLXEngineError | None = None
    if missing:
        problem = IncompatibleWeightsError(f"{card.id} has no {', '.join(missing)}.")
    elif wrong:
        problem = _unknown(card, wrong)
    elif (problem := _settings_problem(card, found)) is None and (
        empty := [part for part, names in weights.items() if not names]
    ):
        problem = IncompatibleWeightsError(
            f"{card.id} has no safetensors weights for {', '.join(empty)}.",
            hint="Pickled weights (.bin, .ckpt) are never loaded: use a repository that has safetensors.",
        )
    return evolve(found, problem=problem)


def _single(card: ModelCard, files: tuple[str, ...]) -> Layout:
    """A checkpoint in one file, of which a repository may hold several."""
    file = files[0]
    problem = single_file.problem_with(card, file)
    if len(files) > 1:
        problem = IncompatibleWeightsError(
            f"{card.id} holds {len(files)} checkpoints: {', '.join(files)}.",
            hint="Fetch the one that you want, and give its path.",
        )
    documents: Mapping[str, Any] = {}
    try:
        documents = freeze(single_file.documents(card, file)) if problem is None else {}
    except MLXEngineError as error:
        problem = error
    xl = "text_encoder_2/config.json" in documents
    found = Layout(
        xl=xl,
        weights=dict.fromkeys(_parts(xl=xl), (file,)),
        documents=documents,
        single=file,
        problem=problem,
    )
    return found if problem is not None else evolve(found, problem=_settings_problem(card, found))


def _parts(*, xl: bool) -> list[str]:
    return ["text_encoder", *(["text_encoder_2"] if xl else []), "unet", "vae"]


def _settings_problem(card: ModelCard, found: Layout) -> MLXEngineError | None:
    """What the documents ask for that is not implemented."""
    vae, unet = found.document("vae/config.json"), found.document("unet/config.json")
    wrong = [f"unet: {item}" for item in unet_problems(unet, vae.get("latent_channels", 4))]
    wrong += [f"vae: {item}" for item in vae_problems(vae)]
    for part in found.parts[:-2]:
        wrong += [f"{part}: {item}" for item in clip_problems(found.document(f"{part}/config.json"))]
    if wrong:
        return _unknown(card, wrong)
    try:
        NoiseSettings.read(found.document("scheduler/scheduler_config.json"))
    except MLXEngineError as error:
        return error
    return None


def _unknown(card: ModelCard, wrong: list[str]) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"{card.id} has settings that are not implemented: {'; '.join(wrong)}.",
        hint="Text-to-image models of Stable Diffusion 1, 2 and XL are.",
    )


def document(card: ModelCard, path: str) -> Mapping[str, Any]:
    """A JSON object of the repository; empty if there is none."""
    found = card.documents.get(path)
    return found if isinstance(found, Mapping) else {}


def weight_files(card: ModelCard, part: str) -> tuple[str, ...]:
    """The safetensors files of a part: one, or its shards; those in half precision where both are there.

    Half precision is what a GPU computes in, and half the download.
    """
    stem = _STEMS.get(part, "model")
    shape = re.compile(rf"{part}/{stem}(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors")
    found: dict[bool, list[str]] = {True: [], False: []}
    for name in card.names(".safetensors"):
        if match := shape.fullmatch(name):
            found[bool(match[1] or match[3])].append(name)
    return tuple(sorted(found[True] or found[False]))


def _wrong_class(index: Mapping[str, Any], part: str) -> str | None:
    entry = index.get(part)
    name = entry[1] if isinstance(entry, tuple | list) and len(entry) == 2 else None
    return None if name in _CLASSES[part] else f"{part} is {name}, not {_CLASSES[part][0]}"


__all__ = ["PIPELINES", "Layout", "document", "read", "weight_files"]
