"""What a repository says about turning its encoder's output into a vector.

Pure: everything is read from the JSON files that a `mlxengine.ModelCard` carries. The formats are
sentence-transformers': ``modules.json`` names the stages, each with a folder of its own, and
``config_sentence_transformers.json`` holds prompts and similarity. A class is known by the last part of its
name, because sentence-transformers 6 moved its modules to other packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen
from mlxengine import ModelCard
from mlxengine.errors import (
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)

from ._families import Family, family_of
from ._judge import Judge, find_judge
from ._known import STAGES
from ._late import METADATA, Late, is_late, read_late, read_stanford
from ._published import SEARCH_TASKS
from ._settings import check_modalities, check_stage, transformer_settings
from .models import EmbedConfiguration

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OWN = "config_sentence_transformers.json"
M3_FILES = {"sparse": "sparse_linear.safetensors", "tokens": "colbert_linear.safetensors"}
"""The files of BGE-M3's further outputs."""
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# The older form: one boolean a mode. Several that are on are joined in this order.
_MODE_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "identity": "identity",
    "tanh": "tanh",
    "gelu": "gelu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
}


@frozen(kw_only=True)
class Dense:
    """``activation(x W + b)``, plus a residual connection where the repository asks for one."""

    folder: str
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "tanh"
    residual: bool = False


@frozen(kw_only=True)
class Normalize:
    """Scale to unit length."""


@frozen(kw_only=True)
class LayerNorm:
    """Layer normalisation of the pooled vector (sentence-transformers' own module)."""

    folder: str
    size: int


@frozen(kw_only=True)
class Splade:
    """Sparse vectors of a masked language model's logits.

    Args:
        greatest: whether the greatest of a text's tokens counts for a term, else their sum.
        twice: whether the logarithm is taken twice.
    """

    greatest: bool = True
    twice: bool = False


Stage = Dense | Normalize | LayerNorm


@frozen(kw_only=True)
class Recipe:
    """How texts become vectors.

    Args:
        source: where the recipe was read, for people.
        pooling: modes whose results are concatenated; each of `POOLING_MODES`.
        include_prompt: whether the prompt's tokens take part in pooling.
        stages: what follows the pooling, in order.
        prompts: the model's own prompts by name.
        default_prompt: the name of the one used when the caller names none.
        max_length: longest input in tokens, special ones included; ``None`` leaves it to the tokenizer.
        lower_case: lower-case every text first.
        similarity: one of `SIMILARITIES`.
        truncate_dim: dimensions that are kept by default; ``None`` keeps all.
        folder: where the encoder's files are, ``""`` for the top.
        late: how token vectors are made, of a model that makes these; ``stages`` are then applied to each.
        splade: how sparse vectors are made, of a model that makes these.
        further: outputs beside the dense vector, each of `M3_FILES`.
        query_terms: the folder with a weight for each token, of which the sparse vectors of queries are made
            without an encoder; ``""`` if there is none.
        default_task: what texts are that nobody calls queries or documents, where these are read differently.
        judge: of a reranker that is a language model, what it reads and what of it is the score.
        static: whether the encoder is a table of vectors, one a token, without layers or special tokens.
    """

    source: str
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    stages: tuple[Stage, ...] = ()
    prompts: Mapping[str, str] = field(factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    similarity: str = "cosine"
    truncate_dim: int | None = None
    folder: str = ""
    late: Late | None = None
    splade: Splade | None = None
    further: tuple[str, ...] = ()
    query_terms: str = ""
    default_task: str | None = None
    judge: Judge | None = None
    static: bool = False

    @property
    def normalizes(self) -> bool:
        """Whether vectors come out with unit length unless the caller says otherwise."""
        return any(isinstance(stage, Normalize) for stage in self.stages)

    def dimension(self, hidden_size: int) -> int:
        """Length of a full vector of an encoder with this hidden size."""
        sizes = [stage.outputs for stage in self.stages if isinstance(stage, Dense)]
        return sizes[-1] if sizes else hidden_size * len(self.pooling)


def is_sentence_model(card: ModelCard) -> bool:
    """Whether ``modules.json`` lists modules of sentence-transformers."""
    return any(
        str(module.get("type", "")).startswith("sentence_transformers.") for module in modules_of(card)
    )


def modules_of(card: ModelCard) -> list[Mapping[str, Any]]:
    """The entries of ``modules.json`` in their order; empty if there is none."""
    found = card.documents.get("modules.json")
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    entries = [module for module in found if isinstance(module, Mapping)]
    return sorted(entries, key=lambda entry: entry["idx"] if isinstance(entry.get("idx"), int) else 0)


def read_recipe(card: ModelCard) -> Recipe:
    """The recipe of a repository: its own files', else the registry entry's, else its family's.

    Raises:
        UnsupportedArchitectureError: it has a stage that is not known, or says nothing about pooling and
            is of no known family.
        IncompatibleWeightsError: a file of the recipe is missing or makes no sense.
    """
    modules = modules_of(card)
    if [str(module.get("type", "")).rpartition(".")[2] for module in modules] == ["Router"]:
        recipe = _read_routes(card)
    else:
        recipe = _read_modules(card, modules) if modules else _without_modules(card)
    configured = card.configuration
    if isinstance(configured, EmbedConfiguration):
        recipe = _apply_configuration(recipe, configured)
    if recipe.pooling and not recipe.static:
        further = tuple(output for output, file in M3_FILES.items() if file in card.names())
        further = further or (("sparse",) if _weighs_tokens(card) else ())
        recipe = evolve(recipe, further=further)
    return read_prompts(recipe, card)


def _weighs_tokens(card: ModelCard) -> bool:
    """Whether GTE's encoder has a classifier of tokens with one label, of which sparse vectors are made."""
    names = [str(name) for name in card.config.get("architectures") or ()]
    shape = next((tensor.shape for tensor in card.tensors if tensor.name == "classifier.weight"), (0,))
    wanted = card.architecture in ("gte", "new") and shape[0] == 1
    return wanted and any(name.endswith("ForTokenClassification") for name in names)


def read_scoring(card: ModelCard) -> Recipe:
    """What a cross-encoder's files say of its input: prompts and the longest one.

    Raises:
        UnsupportedArchitectureError: they ask for what is not known.
    """
    modules = modules_of(card)
    judge = find_judge(card, modules)
    task = "sequence-classification" if judge is None else "text-generation"
    recipe = _read_transformer(Recipe(source="cross-encoder", pooling=(), judge=judge), card, task)
    for module in modules[1 : None if judge is None else -1]:
        raise UnsupportedArchitectureError(
            f"{card.id} has the stage {module.get('type')!r} after its cross-encoder, which is not supported."
        )
    if judge is not None and recipe.max_length is None:
        recipe = evolve(recipe, max_length=judge.max_length)
    # sentence-transformers reads the prompts of repositories that list their modules only.
    return read_prompts(recipe, card) if modules else recipe


def makes_terms(card: ModelCard) -> bool:
    """Whether a repository makes sparse vectors."""
    try:
        return not judges(card) and read_recipe(card).splade is not None
    except MLXEngineError:
        return False


def judges(card: ModelCard) -> bool:
    """Whether a repository holds a language model that scores pairs.

    Raises:
        UnsupportedArchitectureError, IncompatibleWeightsError: it does, but not in a known way.
    """
    return find_judge(card, modules_of(card)) is not None


def _read_modules(card: ModelCard, modules: Sequence[Mapping[str, Any]]) -> Recipe:
    recipe = Recipe(source="modules.json", pooling=())
    late, mask = is_late(card), None
    sparse = any(str(module.get("type", "")).endswith("SpladePooling") for module in modules)
    for module in modules:
        kind, folder = str(module.get("type", "")), str(module.get("path", "")).strip("/").removeprefix(".")
        name = kind.rpartition(".")[2]
        if not (
            kind.startswith("sentence_transformers.")
            or (late and kind == "pylate.models.Dense.Dense")
            or (kind == "custom_st.Transformer" and card.config.get("lora_adaptations"))
        ):
            raise RemoteCodeRefusedError(
                f"{card.id} has a module of its own in modules.json, {kind!r}.",
                hint="A repository's code is never run; choose one with sentence-transformers' own modules.",
            )
        where = f"{folder}/config.json" if folder else "config.json"
        config = card.documents.get(where)
        config = config if isinstance(config, Mapping) else {}
        known = f"token {name}" if late and f"token {name}" in STAGES else name
        if known in STAGES and not name.endswith("Transformer"):
            check_stage(card, known, config, where)
        if name in ("Transformer", "MLMTransformer"):
            task = "fill-mask" if sparse else "feature-extraction"
            recipe = _read_transformer(evolve(recipe, folder=folder), card, task)
        elif name == "SpladePooling":
            recipe = evolve(recipe, splade=_splade(config, where), similarity="dot")
        elif name == "StaticEmbedding":
            recipe = evolve(recipe, folder=folder, static=True, pooling=("mean",))
        elif name == "MultiVectorMask" and late:
            mask = config
        elif name == "Pooling" and not late:
            recipe = evolve(recipe, pooling=_pooling(config, folder), include_prompt=_flag(config))
        elif name == "Dense":
            recipe = evolve(recipe, stages=(*recipe.stages, _dense(config, folder, recipe, late)))
        elif name == "Normalize":
            recipe = evolve(recipe, stages=(*recipe.stages, Normalize()))
        elif name == "LayerNorm":
            size = _number(config, "dimension", folder)
            recipe = evolve(recipe, stages=(*recipe.stages, LayerNorm(folder=folder, size=size)))
        elif name != "Dropout":
            raise UnsupportedArchitectureError(
                f"{card.id} has the stage {name or module!r} in modules.json, which is not supported.",
                hint="Supported are Transformer, StaticEmbedding, Pooling, SpladePooling, Dense, Normalize, "
                "LayerNorm and Dropout.",
            )
    if late:
        _, settings = transformer_settings(card, recipe.folder)
        # PyLate's own files say nothing of the unit length that its vectors have.
        inline = mask is None and not recipe.normalizes
        stages = (*recipe.stages, Normalize()) if inline else recipe.stages
        return evolve(recipe, late=read_late(card, settings, mask), stages=stages, similarity="maxsim")
    if recipe.splade is not None:
        if recipe.pooling or recipe.stages:
            raise UnsupportedArchitectureError(
                f"{card.id} has more stages than its SpladePooling in modules.json, which is not supported."
            )
        return recipe
    configured = card.configuration
    if not recipe.pooling and isinstance(configured, EmbedConfiguration) and configured.pooling:
        return evolve(recipe, source="modules.json and registry entry")
    if not recipe.pooling:
        raise UnsupportedArchitectureError(
            f"{card.id} has no Pooling in modules.json: it makes no sentence vectors.",
            hint='Name the pooling: EmbedConfiguration(id=…, pooling="mean").',
        )
    return recipe


def _splade(config: Mapping[str, Any], where: str) -> Splade:
    found = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if found[0] not in ("max", "sum") or found[1] not in ("relu", "log1p_relu"):
        raise UnsupportedArchitectureError(
            f"{where} pools by {found[0]!r} of {found[1]!r}, which is not known.",
            hint="Known are max and sum of relu and log1p_relu.",
        )
    return Splade(greatest=found[0] == "max", twice=found[1] == "log1p_relu")


def _read_routes(card: ModelCard) -> Recipe:
    """Sparse vectors whose queries need no encoder: sentence-transformers' ``Router`` with two routes."""
    config = card.documents.get("router_config.json")
    config = config if isinstance(config, Mapping) else {}
    types, routes = config.get("types"), config.get("structure")
    parameters = config.get("parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    types, routes = (part if isinstance(part, Mapping) else {} for part in (types, routes))
    kinds = {
        route: [str(types.get(name, "")).rpartition(".")[2] for name in names]
        for route, names in routes.items()
    }
    query, document = kinds.get("query"), kinds.get("document")
    known = len(kinds) == 2 and query == ["SparseStaticEmbedding"] and not parameters.get("route_mappings")
    if not known or document not in (["MLMTransformer", "SpladePooling"], ["Transformer", "SpladePooling"]):
        raise UnsupportedArchitectureError(
            f"{card.id} routes its texts by {kinds or 'nothing'} in router_config.json, which is not "
            "supported.",
            hint="Supported is a SparseStaticEmbedding for queries beside a SpladePooling for documents.",
        )
    entries = [{"type": types[name], "path": name, "idx": i} for i, name in enumerate(routes["document"])]
    folder, default = str(routes["query"][0]), parameters.get("default_route")
    where = f"{folder}/config.json"
    settings = card.documents.get(where)
    check_stage(card, "SparseStaticEmbedding", settings if isinstance(settings, Mapping) else {}, where)
    recipe = _read_modules(card, entries)
    return evolve(recipe, query_terms=folder, default_task=None if default is None else str(default))


def _without_modules(card: ModelCard) -> Recipe:
    if "splade" in card.id.lower() and any(
        str(name).endswith("ForMaskedLM") for name in card.config.get("architectures") or ()
    ):
        return Recipe(source="family splade", pooling=(), splade=Splade(), similarity="dot")
    if is_late(card):
        return _stanford(card)
    recipe = _read_transformer(Recipe(source="", pooling=()), card, "feature-extraction")
    for path, config in card.documents.items():
        if path.count("/") == 1 and path.endswith("_Pooling/config.json") and isinstance(config, Mapping):
            pooling = _pooling(config, path)
            recipe = evolve(recipe, source=path, pooling=pooling, include_prompt=_flag(config))
    family = family_of(card)
    if family is not None:
        recipe = evolve(
            recipe,
            source=recipe.source or f"family {family.name}",
            pooling=recipe.pooling or (family.pooling,),
            stages=(*_widening(card, family), *((Normalize(),) if family.normalize else ())),
            prompts=family.prompts,
            default_prompt=family.default_prompt,
            max_length=recipe.max_length or family.max_length,
        )
    configured = card.configuration
    if isinstance(configured, EmbedConfiguration) and configured.pooling:
        return evolve(recipe, source=recipe.source or "registry entry")
    if not recipe.pooling:
        raise UnsupportedArchitectureError(
            f"{card.id} says nothing about pooling: no modules.json, no 1_Pooling, and no known family.",
            hint='Name the pooling: EmbedConfiguration(id=…, pooling="mean") or pooling="cls".',
        )
    return recipe


def _stanford(card: ModelCard) -> Recipe:
    """ColBERT's own layout: the projection stands among the encoder's tensors."""
    shape = next((tensor.shape for tensor in card.tensors if tensor.name == "linear.weight"), ())
    if len(shape) != 2:
        raise IncompatibleWeightsError(
            f"{card.id} says that it is a ColBERT, but its weights have no linear.weight.",
            hint="The repository is incomplete.",
        )
    late = read_stanford(card)
    dense = Dense(folder="linear", inputs=shape[1], outputs=shape[0], bias=False, activation="identity")
    return Recipe(
        source=METADATA,
        pooling=(),
        stages=(dense, Normalize()),
        prompts=dict(zip(("query", "document"), late.prefixes, strict=True)),
        similarity="maxsim",
        late=late,
    )


def _widening(card: ModelCard, family: Family) -> tuple[Stage, ...]:
    if not family.widens:
        return ()
    names, size = {tensor.name for tensor in card.tensors}, card.config.get("hidden_size")
    if not {"dense.0.weight", "dense.1.weight"} <= names or not isinstance(size, int):
        raise IncompatibleWeightsError(
            f"{card.id} lacks the two projections that follow the encoder of {family.name}.",
            hint="Choose a repository with modules.json and its Dense folders.",
        )
    return (
        Dense(folder="dense.0", inputs=size, outputs=4 * size, bias=False, activation="identity"),
        Dense(folder="dense.1", inputs=4 * size, outputs=size, bias=False, activation="identity"),
    )


def _apply_configuration(recipe: Recipe, entry: EmbedConfiguration) -> Recipe:
    """What the caller's configuration says about a repository that does not say it itself."""
    changed = recipe
    if entry.pooling and recipe.source != "modules.json":
        if entry.pooling not in POOLING_MODES:
            raise InvalidParameterError(
                f"pooling={entry.pooling!r} is not a pooling mode.",
                hint=f"It is one of {', '.join(POOLING_MODES)}.",
            )
        changed = evolve(changed, pooling=(entry.pooling,))
    if entry.normalize is not None and recipe.source != "modules.json":
        changed = evolve(changed, stages=(Normalize(),) if entry.normalize else ())
    if entry.prompts:
        changed = evolve(changed, prompts={**changed.prompts, **dict(entry.prompts)})
    if entry.max_length and changed.max_length is None:
        changed = evolve(changed, max_length=entry.max_length)
    return changed


def _read_transformer(recipe: Recipe, card: ModelCard, task: str) -> Recipe:
    """``max_seq_length`` and ``do_lower_case`` from ``sentence_bert_config.json`` and its namesakes."""
    path, config = transformer_settings(card, recipe.folder)
    if not config:
        return recipe
    check_stage(card, "token Transformer" if is_late(card) else "Transformer", config, path)
    if config.get("transformer_task", task) != task:
        raise UnsupportedArchitectureError(
            f"{path} of {card.id} says transformer_task={config['transformer_task']!r}; what follows it in "
            f"modules.json needs {task!r}."
        )
    if task != "text-generation":
        check_modalities(card, config, path)
    longest = config.get("max_seq_length")
    processing = config.get("processing_kwargs")
    text = processing.get("text") if isinstance(processing, Mapping) else None
    if longest is None and isinstance(text, Mapping):
        longest = text.get("max_length")
    return evolve(
        recipe,
        max_length=int(longest) if isinstance(longest, int) and longest > 0 else None,
        lower_case=bool(config.get("do_lower_case", False)),
    )


def read_prompts(recipe: Recipe, card: ModelCard) -> Recipe:
    """The recipe with what ``config_sentence_transformers.json`` says."""
    config = card.documents.get(_OWN)
    if not isinstance(config, Mapping):
        return recipe
    kind = "token " if recipe.late else "sparse " if recipe.splade else ""
    check_stage(card, f"{kind}SentenceTransformer", config, _OWN)
    prompts = config.get("prompts")
    own = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, Mapping) else {}
    # A repository written by sentence-transformers 5 or later lists empty prompts; they say nothing.
    prompts = {**recipe.prompts, **own} if any(own.values()) or not recipe.prompts else recipe.prompts
    if recipe.late is not None:
        for task in ("query", "document"):
            # PyLate puts its marker before the prompt that is saved beside it.
            start = str(config.get(f"{task}_prefix") or "")
            prompts = {**prompts, task: start + prompts.get(task, "").removeprefix(start)}
    if card.config.get("lora_adaptations"):
        known = {task: prompts[name] for task, name in SEARCH_TASKS.items() if name in prompts}
        prompts = {**known, **prompts}
    default = config.get("default_prompt_name")
    similarity = (
        recipe.similarity
        if recipe.late is not None
        else config.get("similarity_fn_name") or recipe.similarity
    )
    truncate = config.get("truncate_dim" if recipe.splade is None else "max_active_dims")
    if similarity not in SIMILARITIES and recipe.late is None:
        raise UnsupportedArchitectureError(f"The similarity function {similarity!r} is not known.")
    return evolve(
        recipe,
        prompts=prompts,
        default_prompt=str(default) if default is not None else recipe.default_prompt,
        similarity=str(similarity),
        truncate_dim=int(truncate) if isinstance(truncate, int) and truncate > 0 else None,
    )


def _flag(config: Mapping[str, Any]) -> bool:
    return bool(config.get("include_prompt", True))


def _pooling(config: Mapping[str, Any], folder: str) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        flags = [name for flag, name in _MODE_FLAGS.items() if config.get(flag)]
        if not flags and not any(flag in config for flag in _MODE_FLAGS):
            raise UnsupportedArchitectureError(f"{folder} names no pooling mode.")
        modes = flags or ["mean"]
    chosen = (modes,) if isinstance(modes, str) else tuple(map(str, modes))
    unknown = [mode for mode in chosen if mode not in POOLING_MODES]
    if unknown:
        raise UnsupportedArchitectureError(
            f"{folder} asks for the pooling {', '.join(unknown)}, which is not known.",
            hint=f"Known are {', '.join(POOLING_MODES)}. Pooled so, the vectors would not be this model's: "
            "choose another repository.",
        )
    return chosen


def _dense(config: Mapping[str, Any], folder: str, recipe: Recipe, late: bool) -> Dense:
    if not recipe.pooling and not late:
        raise UnsupportedArchitectureError(
            f"{folder} projects token vectors; only Dense stages after the pooling are supported."
        )
    # sentence-transformers' own default, where the file names none.
    dotted = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    activation = _ACTIVATIONS.get(dotted.rpartition(".")[2].lower())
    if activation is None:
        raise UnsupportedArchitectureError(
            f"{folder} uses the activation {dotted}, which is not supported.",
            hint=f"Supported are {', '.join(_ACTIVATIONS)}.",
        )
    return Dense(
        folder=folder,
        inputs=_number(config, "in_features", folder),
        outputs=_number(config, "out_features", folder),
        bias=bool(config.get("bias", True)),
        activation=activation,
        residual=bool(config.get("use_residual", False)),
    )


def _number(config: Mapping[str, Any], key: str, folder: str) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise IncompatibleWeightsError(f"{folder}/config.json has no {key}.")
    return value
