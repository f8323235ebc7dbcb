"""Models that see: pictures and texts in one space. Told from a card alone.

The layouts are transformers' (``CLIPModel``, ``SiglipModel``, ``ColPaliForRetrieval``) and those in which
sentence-transformers keeps one of the first two as its first module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen
from mlxengine import Claim, Fit, MemoryEstimate, ModelCard, VectorWorkload
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, UnsupportedArchitectureError
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import loaded_weights

from ._known import ENCODERS, Known
from ._late import Late
from ._recipe import Normalize, Recipe, modules_of, read_prompts
from ._settings import check_part, transformer_settings

_TEXT = {"num_hidden_layers": 12, "eos_token_id": 49407}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VISION |= {"image_size": 224}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
DEFAULTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "clip": (
        {
            **_TEXT,
            **_CLIP,
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
        },
        {**_VISION, **_CLIP, "patch_size": 32},
    ),
    "siglip": (
        {**_VISION, **_TEXT, **_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64},
        {**_VISION, **_SIGLIP, "patch_size": 16},
    ),
    "colpali": (
        {
            "model_type": "gemma",
            "vocab_size": 257152,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 8192,
        },
        {
            **_SIGLIP,
            "hidden_size": 1152,
            "intermediate_size": 4096,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "vision_use_head": False,
        },
    ),
}
"""What transformers' configurations of the two towers, text and vision, say where a file says nothing."""

_TOWER = Known(
    read=frozenset(
        (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("hidden_act", "max_position_embeddings", "layer_norm_eps", "image_size", "patch_size"),
            *("projection_dim", "projection_size"),
        )
    ),
    only={
        "num_channels": (3,),
        "vision_use_head": (True,),
        **dict.fromkeys(("is_decoder", "is_encoder_decoder", "add_cross_attention"), (False,)),
    },
)
_WHOLE = Known(
    read=frozenset(
        ("text_config", "vision_config", "text_config_dict", "vision_config_dict", "projection_dim")
    ),
    harmless=frozenset(("logit_scale_init_value",)),
)
_PALIGEMMA = evolve(
    ENCODERS["gemma"],
    only={**ENCODERS["gemma"].only, "model_type": ("gemma",), "use_bidirectional_attention": (True,)},
    harmless=frozenset(("num_image_tokens",)),
)
_COLPALI = Known(
    read=frozenset(
        (
            *("vlm_config", "embedding_dim", "text_config", "vision_config", "hidden_size", "projection_dim"),
            *("image_token_index", "image_token_id", "ignore_index"),
        )
    )
)
_NO_HEAD = evolve(
    _TOWER,
    only={**_TOWER.only, "vision_use_head": (False,)},
    harmless=frozenset(("num_image_tokens", "num_positions", "projector_hidden_act")),
)
_MODULE = Known(
    read=frozenset(("max_seq_length", "modality_config")),
    only={
        "transformer_task": ("feature-extraction",),
        "module_output_name": ("sentence_embedding",),
        "do_lower_case": (False,),
    },
)
_MODALITY = Known(
    only={
        "method": ("get_text_features", "get_image_features"),
        "method_output_name": ("pooler_output",),
    }
)
_PROCESSORS = {"CLIPImageProcessor": "clip", "CLIPFeatureExtractor": "clip", "SiglipImageProcessor": "siglip"}
_ELSEWHERE = ("siglip2", "colqwen2", "colmodernvbert", "qwen3_vl_embedding")
_CHATS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_LARGEST = 4096  # pixels along a side that a processor may scale a picture to


@frozen(kw_only=True)
class Sight:
    """What is known of a model that sees.

    Args:
        kind: one of `DEFAULTS`.
        text, vision: the configurations of its towers, complete.
        dimension: length of a vector.
        processor: the settings of its picture processor.
        processing: whose processor that is, one of `DEFAULTS`.
        recipe: where its files are, and what follows the towers.
        showing, asking: what ColPali reads after a picture and before a text.
    """

    kind: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    dimension: int
    processor: Mapping[str, Any]
    processing: str
    recipe: Recipe
    showing: str = ""
    asking: str = ""

    @property
    def places(self) -> int:
        """How many positions a picture takes."""
        return int((self.vision["image_size"] // self.vision["patch_size"]) ** 2 + (self.kind == "clip"))


def sees(card: ModelCard) -> bool:
    """Whether a model's files are those of one that sees."""
    kind = _config(card, _folder(card)).get("model_type")
    # The last are models that chat, too; for vectors they are asked by name.
    asked = card.configuration.kind == "embed" or card.configuration.plugin == "embed" or modules_of(card)
    return kind in DEFAULTS or kind in _ELSEWHERE or (kind in _CHATS and bool(asked))


def _folder(card: ModelCard) -> str:
    modules = modules_of(card)
    return str(modules[0].get("path", "")).strip("/") if modules else ""


def _config(card: ModelCard, folder: str) -> Mapping[str, Any]:
    found = card.documents.get(f"{folder}/config.json") if folder else card.config
    return found if isinstance(found, Mapping) else {}


def read_sight(card: ModelCard) -> Sight:
    """What a card says.

    Raises:
        UnsupportedArchitectureError: it has a setting or a stage that is not known.
        IncompatibleWeightsError: a file is missing or makes no sense.
    """
    folder = _folder(card)
    config, where = _config(card, folder), f"{folder}/config.json" if folder else "config.json"
    kind = str(config.get("model_type"))
    if kind not in DEFAULTS:
        raise UnsupportedArchitectureError(
            f"{card.id} makes vectors of pictures with the architecture {kind!r}, which is not supported.",
            hint=f"Supported are {', '.join(DEFAULTS)}: of one vector a picture for example "
            "google/siglip2-base-patch16-224, of one a patch vidore/colpali-v1.3-hf.",
        )
    late = kind == "colpali"
    inner = config.get("vlm_config") if late else config
    if not isinstance(inner, Mapping) or (late and inner.get("model_type") != "paligemma"):
        raise UnsupportedArchitectureError(
            f"{where} of {card.id} says nothing of a PaliGemma in vlm_config; no other is supported.",
            hint="Choose vidore/colpali-v1.3-hf.",
        )
    for part in (config, inner):
        check_part(card, _COLPALI if late else _WHOLE, part, where)
    if (problem := config_problem(card.id, config, card.tensors)) is not None:
        raise problem
    towers = []
    known = (_PALIGEMMA, _NO_HEAD) if late else (_TOWER, _TOWER)
    for name, defaults, settings in zip(("text", "vision"), DEFAULTS[kind], known, strict=True):
        said = [inner.get(f"{name}_config"), inner.get(f"{name}_config_dict")]  # the latter wins
        parts = [part for part in said if isinstance(part, Mapping)]
        for part in parts:
            check_part(card, settings, part, f"{where} ({name}_config)")
        given = {key: value for part in parts for key, value in part.items() if value is not None}
        towers.append(_sized(card, {**defaults, **given}, defaults, f"{where} ({name}_config)"))
    text, vision = towers
    if kind == "siglip":
        dimension = text.get("projection_size") or text["hidden_size"]
    else:
        dimension = config.get("embedding_dim" if late else "projection_dim") or (128 if late else 512)
    if not _like(dimension, 1):
        raise IncompatibleWeightsError(
            f"{where} of {card.id} names no length of its vectors.", hint="The repository is damaged."
        )
    if kind == "siglip" and dimension != vision["hidden_size"]:
        raise IncompatibleWeightsError(
            f"{where} of {card.id} gives texts {dimension} dimensions and pictures {vision['hidden_size']}.",
            hint="The repository is damaged: compare the file with the original's.",
        )
    processor, processing = _processor(card, folder, kind, vision)
    told = card.documents.get("processor_config.json")
    told = told if isinstance(told, Mapping) else {}
    return Sight(
        kind=kind,
        text=text,
        vision=vision,
        dimension=dimension,
        processor=processor,
        processing=processing,
        recipe=_recipe(card, folder, late),
        showing=str(told.get("visual_prompt_prefix", "Describe the image.")),
        asking=str(told.get("query_prefix", "Question: ")),
    )


def _sized(
    card: ModelCard, tower: Mapping[str, Any], usual: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
    """A tower whose sizes are what a network can be built of.

    Raises:
        IncompatibleWeightsError: one is not.
    """
    wrong = next((key for key, value in usual.items() if not _like(tower[key], value)), None)
    if wrong is None and tower["hidden_size"] % tower["num_attention_heads"] and "head_dim" not in usual:
        wrong = "num_attention_heads"
    if wrong is None and tower.get("patch_size", 1) > tower.get("image_size", 1):
        wrong = "patch_size"
    if wrong is not None:
        raise IncompatibleWeightsError(
            f"{where} of {card.id} says {wrong}={tower[wrong]!r:.60}, of which nothing can be built.",
            hint="The repository is damaged: compare the file with the original's.",
        )
    return tower


def _like(value: Any, usual: Any) -> bool:
    """Whether a value can stand where the usual one does; numbers are positive."""
    if isinstance(usual, bool | str):
        return type(value) is type(usual)
    kinds = (int, float) if isinstance(usual, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _recipe(card: ModelCard, folder: str, late: bool) -> Recipe:
    modules = modules_of(card)
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if late and not modules:
        return Recipe(
            source="the architecture",
            pooling=(),
            stages=(Normalize(),),
            late=Late(),
            similarity="maxsim",
        )
    if not modules:
        # The model's own comparison scales to unit length.
        return Recipe(source="the architecture", pooling=(), stages=(Normalize(),))
    if late or names[0] not in ("CLIPModel", "Transformer") or any(name != "Normalize" for name in names[1:]):
        raise UnsupportedArchitectureError(
            f"{card.id} has the stages {', '.join(names)} in modules.json; of a model that sees, only "
            "CLIPModel (or Transformer) and Normalize are supported."
        )
    where, settings = transformer_settings(card, folder)
    check_part(card, _MODULE, settings, where)
    ways = settings.get("modality_config")
    for name, way in ways.items() if isinstance(ways, Mapping) else ():
        check_part(card, _MODALITY, way if isinstance(way, Mapping) else {name: way}, f"{where} ({name})")
    recipe = Recipe(
        source="modules.json",
        pooling=(),
        stages=(Normalize(),) * (len(names) > 1),
        folder=folder,
        max_length=settings.get("max_seq_length"),
    )
    return read_prompts(recipe, card)


def _processor(
    card: ModelCard, folder: str, kind: str, vision: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str]:
    """The settings of the picture processor, and whose it is; what it makes has to fit the tower."""
    start = f"{folder}/" if folder else ""
    found, name = card.documents.get(f"{start}preprocessor_config.json"), "preprocessor_config.json"
    if not isinstance(found, Mapping):
        whole, name = card.documents.get(f"{start}processor_config.json"), "processor_config.json"
        found = whole.get("image_processor") if isinstance(whole, Mapping) else None
    if not isinstance(found, Mapping):
        raise IncompatibleWeightsError(
            f"{card.id} has no preprocessor_config.json: how its pictures are scaled is not known.",
            hint="Take that file from the original repository.",
        )
    told = found.get("image_processor_type") or found.get("feature_extractor_type")
    whose = kind if told is None else _PROCESSORS.get(str(told).removesuffix("Fast"))
    if whose is None:
        raise UnsupportedArchitectureError(
            f"{start}{name} of {card.id} names the picture processor {told!r}, which is not supported.",
            hint=f"Supported are {', '.join(_PROCESSORS)}.",
        )
    side, wanted = _made(found, whose), vision["image_size"]
    if side != wanted:
        raise IncompatibleWeightsError(
            f"{start}{name} of {card.id} makes pictures of {side or 'no one size'}, and its tower takes "
            f"{wanted} × {wanted}.",
            hint="The repository is incomplete or damaged: compare the file with the original's.",
        )
    return found, whose


def _made(settings: Mapping[str, Any], whose: str) -> int | None:
    """The side of the square that a processor makes of any picture; ``None`` if it makes none."""
    size, crop = settings.get("size", 224), settings.get("crop_size", 224)
    for value in (size, crop):
        sides = value.values() if isinstance(value, Mapping) else (value,)
        if not all(isinstance(item, int) and 0 < item <= _LARGEST for item in sides):
            return None
    crops = settings.get("do_center_crop", whose == "clip")
    square = crop if crops else size if settings.get("do_resize", True) else None
    if isinstance(square, Mapping):
        return square.get("height") if square.get("height") == square.get("width") else None
    return square if crops or whose == "siglip" else None


def claim_sight(card: ModelCard, files: tuple[str, ...]) -> Claim | None:
    """The offer for a model that sees; ``None`` for any other."""
    if not sees(card):
        return None
    problem: MLXEngineError | None = None
    sight = None
    try:
        sight = read_sight(card)
    except MLXEngineError as error:
        problem = error
    return Claim(
        kind="embed",
        fit=Fit.NATIVE,
        files=files,
        capabilities={"embeddings", "vision"},
        estimate=lambda workload: _estimate(card, sight, workload),
        problem=problem,
        reason="pictures and texts in one space",
    )


def _estimate(card: ModelCard, sight: Sight | None, workload: VectorWorkload) -> MemoryEstimate:
    from ._claim import CPU_TOKENS, GPU_TOKENS

    workspace = 0
    if sight is not None:
        budget = CPU_TOKENS if workload.backend == "cpu" else GPU_TOKENS
        longest = sight.places if sight.kind == "colpali" else sight.text["max_position_embeddings"]
        for tower, length in ((sight.text, longest), (sight.vision, sight.places)):
            rows = min(workload.batch, max(1, budget // length))
            numbers = 7 * tower["hidden_size"] + 4 * tower["intermediate_size"]
            numbers += tower["num_attention_heads"] * length
            pixels = 3 * sight.vision["image_size"] ** 2 if tower is sight.vision else 0
            workspace = max(workspace, 4 * rows * (length * numbers + pixels))
    return MemoryEstimate(weights=loaded_weights(card, workload), workspace=workspace)


__all__ = ["DEFAULTS", "Sight", "claim_sight", "read_sight", "sees"]
