"""What of a repository's configuration is honoured; what else could change its vectors is refused by name.

A setting is read by what builds the encoder or the stage, or is honoured with some of its values only, or is
known to leave vectors alone (dropout, a generation's settings, a head's labels). Any other setting may stand
for code that is not here. ``None`` and empty values say nothing and pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxengine import ModelCard
from mlxengine.errors import MLXEngineError, RemoteCodeRefusedError, UnsupportedArchitectureError

from ._architectures import LIBRARIES
from ._known import ENCODERS, HARMLESS, MODALITY, STAGES, TEXT, Known
from .models import EmbedConfiguration


def ignored_settings(card: ModelCard) -> Collection[str]:
    """The settings that the caller says are harmless."""
    entry = card.configuration
    return entry.harmless_settings if isinstance(entry, EmbedConfiguration) else ()


def check_stage(card: ModelCard, name: str, config: Mapping[str, Any], where: str) -> None:
    """Refuse what a stage's configuration says and nothing here honours.

    Args:
        card: the model.
        name: one of `STAGES`.
        config: the stage's configuration.
        where: its file.

    Raises:
        UnsupportedArchitectureError: it names the setting.
    """
    if name == "Pooling":
        # A mode that is off does nothing, whichever it is.
        config = {k: v for k, v in config.items() if not (k.startswith("pooling_mode_") and v is False)}
    _check(card, STAGES[name], config, where)
    if name.rpartition(" ")[2] == "Transformer":
        for part, known in (("processing_kwargs", TEXT), ("modality_config", Known(only=MODALITY))):
            given = config.get(part)
            for modality, settings in given.items() if isinstance(given, Mapping) else ():
                # What is meant for pictures or sound does nothing to a text.
                if modality in ("text", "common", "message") and isinstance(settings, Mapping):
                    _check(card, known, settings, f"{where} ({part})")


def transformer_settings(card: ModelCard, folder: str) -> tuple[str, Mapping[str, Any]]:
    """The file in a folder that says how sentence-transformers' ``Transformer`` reads, and what it says.

    It is ``sentence_bert_config.json`` or one of its namesakes; an empty path and mapping if there is none.
    """
    for path, config in card.documents.items():
        where, _, name = path.rpartition("/")
        mine = where == folder and name.startswith("sentence_") and name.endswith("_config.json")
        if mine and isinstance(config, Mapping):
            return path, config
    return "", {}


def check_modalities(card: ModelCard, config: Mapping[str, Any], where: str) -> None:
    """Refuse texts that sentence-transformers would put into a chat template before an encoder reads them."""
    modalities = config.get("modality_config")
    if isinstance(modalities, Mapping) and "message" in modalities:
        _check(card, Known(), {"modality_config": "message"}, where)


def _check(card: ModelCard, known: Known, config: Mapping[str, Any], where: str) -> None:
    for key in known.refused(config):
        if key not in ignored_settings(card):
            raise _refusal(card, key, config[key], where)


def encoder_problem(
    card: ModelCard, config: Mapping[str, Any], where: str, *, judged: bool = False
) -> MLXEngineError | None:
    """Why an encoder would not be what its ``config.json`` says, where a setting is the reason.

    Args:
        card: the model.
        config: the file as it was published; its ``model_type`` is one of `ENCODERS`.
        where: its name.
        judged: whether its whole language model is used, not the encoder in it.
    """
    kind = str(config["model_type"])
    known, ignored = ENCODERS[kind], ignored_settings(card)
    for key in known.refused(config):
        if key not in HARMLESS and key not in ignored:
            return _refusal(card, key, config[key], where)
    code = _own_code(config, known, judged)
    if code is not None and "auto_map" not in ignored:
        return RemoteCodeRefusedError(
            f"{card.id} has code of its own for its encoder ({code}), which may compute something else than "
            f"{kind} does; it is never run.",
            hint=f"Choose a repository without auto_map. {_escape('auto_map')}",
        )
    for key, found in (("rope_parameters", _scaled(kind, config)), ("layer_types", _irregular(kind, config))):
        if found is not None and key not in ignored:
            return _refusal(card, key, found, where)
    return None


def check_part(card: ModelCard, known: Known, config: Mapping[str, Any], where: str) -> None:
    """Refuse what one part of a configuration says and nothing here honours.

    Raises:
        UnsupportedArchitectureError: it names the setting.
    """
    for key in known.refused(config):
        if key not in HARMLESS and key not in ignored_settings(card):
            raise _refusal(card, key, config[key], where)


def _own_code(config: Mapping[str, Any], known: Known, judged: bool) -> str | None:
    """The class that a repository brings for what the encoder computes, unless it is known."""
    classes = config.get("auto_map")
    if not isinstance(classes, Mapping):
        return None
    names = [str(name) for name in config.get("architectures") or ()]
    scores = any(name.endswith("ForSequenceClassification") for name in names)
    wanted = "AutoModelForSequenceClassification" if scores else "AutoModel"
    wanted = "AutoModelForCausalLM" if judged else wanted
    found = [str(classes[key]) for key in ("AutoConfig", wanted) if classes.get(key)]
    return next((name for name in found if name.rpartition(".")[2] not in known.code), None)


def _scaled(kind: str, config: Mapping[str, Any]) -> Any:
    """Rotary positions that are anything but plain, unless they are scaled as GTE's are."""
    parameters, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    known = kind == "new" and isinstance(scaling, Mapping) and set(scaling) == {"type", "factor"}
    known = known and dict(scaling or {})["type"] == "ntk"
    plain = ("default", "linear", "llama3") if LIBRARIES[kind] == LIBRARIES["llama"] else ("default",)
    found = [None if known else scaling, parameters]
    if isinstance(parameters, Mapping):  # one of each kind of layers
        found += parameters.values()
    for item in found:
        if isinstance(item, Mapping) and item:
            kind = item.get("rope_type", item.get("type", "default"))
            if kind not in plain or item.get("partial_rotary_factor", 1.0) != 1.0:
                return item
    return None


def _irregular(kind: str, config: Mapping[str, Any]) -> Any:
    """``layer_types`` that the period by which an encoder is built does not give."""
    given = config.get("layer_types")
    if not isinstance(given, Sequence) or not given:
        return None
    full, sliding = "full_attention", "sliding_attention"
    if kind == "modernbert":
        period = config.get("global_attn_every_n_layers") or _distance(given, full)
        expected = [full if i % period == 0 else sliding for i in range(len(given))]
    elif kind == "gemma3_text":
        period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        period = period or (given.index(full) + 1 if full in given else 6)
        expected = [full if (i + 1) % period == 0 else sliding for i in range(len(given))]
    else:  # a layer is of one kind or of the other
        expected = [kind if kind in (full, sliding) else full for kind in given]
    same = list(given) == expected and len(given) == config.get("num_hidden_layers", len(given))
    return None if same else [str(item) for item in given]


def _distance(kinds: Sequence[Any], wanted: str) -> int:
    places = [index for index, kind in enumerate(kinds) if kind == wanted]
    return places[1] - places[0] if len(places) > 1 else len(kinds)


def _refusal(card: ModelCard, key: str, value: Any, where: str) -> MLXEngineError:
    shown = repr(value)
    return UnsupportedArchitectureError(
        f"{where} of {card.id} says {key}={shown[:120]}{'…' if len(shown) > 120 else ''}, which is not "
        "supported and may change its vectors.",
        hint=_escape(key),
    )


def _escape(key: str) -> str:
    return f'If it changes nothing, say so: EmbedConfiguration(id=…, harmless_settings=("{key}",)).'


__all__ = [
    "check_modalities",
    "check_part",
    "check_stage",
    "encoder_problem",
    "ignored_settings",
    "transformer_settings",
]
