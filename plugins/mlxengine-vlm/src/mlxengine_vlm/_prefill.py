"""From token ids and pixels to the inputs of the language model, whole or cut into chunks.

mlx-vlm's models merge media features into the token embeddings (``get_input_embeddings``) and hand back
whatever else their language model wants for the prompt: positions, masks, deepstack features. A `Prefill`
holds these for one request. Only those that are nothing but embeddings and positions may be stacked, so no
picture can reach another row.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, field, frozen
from mlxengine.errors import UnsupportedInputError

SPLICED = frozenset(
    {"smolvlm", "idefics3", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "lfm2_vl", "paligemma"}
)
"""Model types whose media features may be kept and put back, and whose prompts may start from a kept
cache: those that the parity tests compare with transformers on both ways."""

_CUT = frozenset({"inputs_embeds", "position_ids", "mask", "visual_pos_masks", "deepstack_visual_embeds"})
_PASSED = frozenset({"rope_deltas"})
_CROSSED = ("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask")
_STACKED = frozenset({"inputs_embeds", "position_ids", "rope_deltas"})
_ONE_PICTURE = frozenset({"paligemma"})  # mlx-vlm encodes the first, and puts nothing in the others' place
_KEPT_BY_NETWORK = ("_position_ids", "_rope_deltas")
_ACROSS = {"idefics3": 1, "smolvlm": 1}  # the axis of pictures, where it is not the first


@frozen(kw_only=True)
class Features:
    """What a vision encoder made of a request's media: one vector of width D for each media token.

    Args:
        vectors: shape (media tokens, D).
        deepstack: arrays of that shape for the first layers (Qwen3-VL), or empty.
    """

    vectors: Any = field(repr=False)
    deepstack: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def nbytes(self) -> int:
        return int(self.vectors.nbytes + sum(layer.nbytes for layer in self.deepstack))


@define(kw_only=True)
class Prefill:
    """What is left of a prompt to compute.

    Args:
        ids: the prompt's tokens, media placeholders expanded.
        inputs: keyword arguments of the language model, sequence axis as long as ``ids``.
        media: for each token whether it stands for media; shape (len(ids),), bool.
        whole: the prompt can be computed in one piece only.
        restarts: it may start behind a prefix whose cache was kept.
        features: the media's vectors, to keep for the next request about them.
        start: tokens that are computed already.
    """

    ids: list[int]
    inputs: dict[str, Any] = field(repr=False)
    media: Any = field(repr=False)
    whole: bool = False
    restarts: bool = False
    features: Features | None = None
    start: int = 0

    @property
    def left(self) -> int:
        """Tokens still to compute."""
        return len(self.ids) - self.start

    @property
    def media_end(self) -> int:
        """Position behind the last media token; 0 without media."""
        return int(np.flatnonzero(self.media)[-1]) + 1 if self.media.any() else 0

    @property
    def plain(self) -> bool:
        """Whether it may share a pass: nothing but embeddings and positions, and text at its end."""
        simple = self.inputs.keys() <= _STACKED and not bool(self.media[-1])
        return self.restarts and not self.whole and simple

    @property
    def rope_deltas(self) -> Any:
        """Shape (1, 1): how far positions run ahead of tokens after the prompt (M-RoPE), or ``None``."""
        return self.inputs.get("rope_deltas")

    @property
    def crossed(self) -> dict[str, Any]:
        """What every token of the answer looks at, as the prompt's last one does (cross-attention)."""
        found = {name: value for name, value in self.inputs.items() if name in _CROSSED}
        masks = {name: value[:, :, -1:] for name, value in found.items() if name != "cross_attention_states"}
        return {**found, **masks}

    def take(self, count: int) -> tuple[Any, dict[str, Any]]:
        """The next tokens (at most ``count``; all where it cannot be cut), shape (1, n), and their inputs."""
        begin = self.start
        end = len(self.ids) if self.whole else min(begin + count, len(self.ids))
        self.start = end
        inputs = self.inputs if (begin, end) == (0, len(self.ids)) else self._cut(begin, end)
        return mx.array([self.ids[begin:end]]), inputs

    def _cut(self, begin: int, end: int) -> dict[str, Any]:
        cut = {}
        for name, value in self.inputs.items():
            if name == "mask":
                cut[name] = value[..., begin:end, :end]
            elif name == "position_ids":  # ERNIE's have the three axes behind the tokens
                behind = value.ndim == 3 and value.shape[1] == len(self.ids) != 1
                cut[name] = value[:, begin:end] if behind else value[..., begin:end]
            elif name == "deepstack_visual_embeds":
                first, last = int(self.media[:begin].sum()), int(self.media[:end].sum())
                if last > first:
                    cut[name] = [layer[first:last] for layer in value]
            elif name in _CUT:
                cut[name] = value[:, begin:end]
            else:
                cut[name] = value
        if "deepstack_visual_embeds" not in cut:
            cut.pop("visual_pos_masks", None)
        return cut


def stacked(parts: Sequence[tuple[Any, dict[str, Any]]], length: int) -> tuple[Any, dict[str, Any]]:
    """What `Prefill.take` gave of several plain prompts as one pass, padded on the right to ``length``."""
    names = parts[0][1]
    flat = "position_ids" in names and all(inputs["position_ids"].ndim == 2 for _, inputs in parts)

    def row(name: str, value: Any) -> Any:
        if name == "rope_deltas":
            return value
        if name == "position_ids" and value.ndim == 2 and not flat:  # text: one count for all three axes
            value = mx.broadcast_to(value[None], (3, *value.shape))
        axis = 1 if name == "inputs_embeds" else value.ndim - 1
        padding = [(0, 0)] * value.ndim
        padding[axis] = (0, length - value.shape[axis])
        return mx.pad(value, padding)

    def axis(name: str) -> int:
        return 1 if name == "position_ids" and not flat else 0

    ids = mx.concatenate([mx.pad(part, [(0, 0), (0, length - part.shape[1])]) for part, _ in parts])
    return ids, {
        name: mx.concatenate([row(name, inputs[name]) for _, inputs in parts], axis=axis(name))
        for name in names
    }


def encode(
    model: Any,
    kind: str,
    prompts: Sequence[tuple[Sequence[int], Mapping[str, Any]]],
    media_tokens: frozenset[int],
) -> list[Features]:
    """The features of the media of several prompts, encoded in one call.

    Args:
        model, kind, media_tokens: as in `embed`.
        prompts: token ids, and what the processor made besides, of the same shapes for all.
    """
    tokens = [token for ids, _ in prompts for token in ids]
    across = _ACROSS.get(kind, 0)
    given = {
        name: mx.concatenate([mx.array(given[name]) for _, given in prompts], axis=across)
        for name in prompts[0][1]
    }
    media = np.isin(np.asarray(tokens), list(media_tokens))
    inputs = _merged(model, mx.array([tokens]), given)
    if kind == "gemma3":
        inputs.pop("attention_mask_4d", None)
    found = _features(kind, inputs, media)
    if found is None:
        raise ValueError(f"{kind} has no features of its own")
    counts = [int(np.isin(np.asarray(ids), list(media_tokens)).sum()) for ids, _ in prompts]
    parts, start = [], 0
    for count in counts:
        end = start + count
        deepstack = tuple(layer[start:end] for layer in found.deepstack)
        parts.append(Features(vectors=found.vectors[start:end], deepstack=deepstack))
        start = end
    return parts


def _merged(model: Any, tokens: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-vlm's own inputs of a prompt, its media encoded."""
    extra = {name: value for name, value in given.items() if name != "pixel_values"}
    mask = mx.ones(tokens.shape, dtype=mx.int32)
    language = getattr(model, "language_model", model)
    for name in _KEPT_BY_NETWORK:
        if hasattr(language, name):
            setattr(language, name, None)
    made = model.get_input_embeddings(tokens, given.get("pixel_values"), mask=mask, **extra)
    inputs = {name: value for name, value in made.to_dict().items() if value is not None}
    if "position_ids" not in inputs and hasattr(language, "get_rope_index"):
        inputs |= _positions(language, tokens, given)
    if looks_again(language) and "cross_attention_states" not in inputs:
        inputs |= _nothing_to_see(inputs["inputs_embeds"])
    return inputs


def _nothing_to_see(embeds: Any) -> dict[str, Any]:
    """What makes layers of cross-attention leave a text as it is, as transformers does by skipping them."""
    states = mx.zeros((1, 1, embeds.shape[-1]), dtype=embeds.dtype)
    return {"cross_attention_states": states, "full_text_row_masked_out_mask": mx.zeros((1, 1, 1, 1))}


def _positions(language: Any, tokens: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Positions of a prompt and how far later ones run ahead, of a network that notes them itself (M-RoPE).

    Rows that decode together share a network, so what it noted of one prompt would be used for the next.
    """
    ids, deltas = (getattr(language, name, None) for name in _KEPT_BY_NETWORK)
    if ids is None or deltas is None:
        ids, deltas = language.get_rope_index(
            tokens,
            image_grid_thw=given.get("image_grid_thw"),
            video_grid_thw=given.get("video_grid_thw"),
            attention_mask=mx.ones(tokens.shape, dtype=mx.int32),
        )
    return {"position_ids": ids, "rope_deltas": mx.array(deltas).reshape(1, 1).astype(mx.int32)}


def embed(
    model: Any,
    kind: str,
    ids: Sequence[int],
    given: Mapping[str, Any],
    media_tokens: frozenset[int],
    known: Features | None = None,
) -> Prefill:
    """Merge a request's media into its token embeddings.

    Args:
        model: a model of mlx-vlm.
        kind: its ``model_type``.
        ids: the prompt's tokens, media placeholders expanded.
        given: what the processor made besides the tokens (``pixel_values``, grids, sizes …).
        media_tokens: the placeholders' token ids.
        known: the features of the same media from an earlier request: nothing is encoded then.

    Raises:
        UnsupportedInputError: mlx-vlm made more or fewer embeddings than the prompt has tokens, or would see
            the first of several pictures alone.
    """
    if kind in _ONE_PICTURE and "pixel_values" in given and given["pixel_values"].shape[0] > 1:
        raise UnsupportedInputError(
            f"mlx-vlm's {kind} takes one picture in a prompt, found {given['pixel_values'].shape[0]}.",
            hint="Ask about each by itself, or use another model.",
        )
    tokens = mx.array([list(ids)])
    media = np.isin(np.asarray(ids), list(media_tokens))
    if known is not None and (kind not in SPLICED or known.vectors.shape[0] != int(media.sum())):
        known = None
    if known is not None:
        inputs = _splice(model, tokens, given, media, known)
    else:
        inputs = _merged(model, tokens, given)
        if kind not in SPLICED:  # mlx-vlm hands its language models everything that the processor made
            inputs = {**{name: value for name, value in given.items() if name != "pixel_values"}, **inputs}
    expands = _expands(kind, inputs["inputs_embeds"].shape[1], media)
    if kind == "gemma3" and media.any():
        inputs.pop("attention_mask_4d", None)
        window = int(getattr(model.config.text_config, "sliding_window", 0) or 0)
        # One mask serves all layers, so a prompt beyond the sliding window is left to the causal ones.
        if not window or len(ids) <= window:
            inputs["mask"] = _block_mask(media)
    return Prefill(
        ids=list(ids),
        inputs=inputs,
        media=media,
        whole=expands
        or "mask" in inputs
        or bool(set(inputs) - _CUT - _PASSED)
        or looks_again(getattr(model, "language_model", model))
        or _no_chunks(model, tokens, inputs),
        restarts=kind in SPLICED and "attention_mask_4d" not in inputs,
        features=known or _features(kind, inputs, media),
    )


def _expands(kind: str, length: int, media: Any) -> bool:
    """Whether each picture is one token that several embeddings come for."""
    if length == len(media):
        return False
    together = bool((media[1:] & media[:-1]).any())
    if length < len(media) or together or not media.any():
        raise UnsupportedInputError(
            f"mlx-vlm's {kind} made {length} embeddings of a prompt of {len(media)} tokens, "
            f"{int(media.sum())} of them placeholders.",
            hint="Ask without pictures, or use another model: this family's pictures do not work here.",
        )
    return True


def looks_again(language: Any) -> bool:
    """Whether every token of an answer takes the picture's states anew, from the caller (cross-attention)."""
    return "cross_attention_states" in inspect.signature(type(language).__call__).parameters


def _splice(model: Any, tokens: Any, given: Mapping[str, Any], media: Any, known: Features) -> dict[str, Any]:
    """The inputs that encoding the media again would give, without encoding them."""
    made = model.get_input_embeddings(tokens, None, mask=mx.ones(tokens.shape, dtype=mx.int32))
    inputs = {name: value for name, value in made.to_dict().items() if value is not None}
    embeds = inputs["inputs_embeds"]
    order = mx.array(np.maximum(np.cumsum(media) - 1, 0))
    inputs["inputs_embeds"] = mx.where(
        mx.array(media)[None, :, None], known.vectors[order][None].astype(embeds.dtype), embeds
    )
    language = model.language_model
    if "position_ids" in inputs and hasattr(language, "get_rope_index"):
        inputs["position_ids"], inputs["rope_deltas"] = language.get_rope_index(
            tokens,
            given.get("image_grid_thw"),
            given.get("video_grid_thw"),
            mx.ones(tokens.shape, dtype=mx.int32),
        )
    if known.deepstack:
        inputs["visual_pos_masks"] = mx.array(media)[None]
        inputs["deepstack_visual_embeds"] = list(known.deepstack)
    return inputs


def _features(kind: str, inputs: Mapping[str, Any], media: Any) -> Features | None:
    if kind not in SPLICED or not media.any() or "attention_mask_4d" in inputs:
        return None
    where = mx.array(np.flatnonzero(media))
    return Features(
        vectors=inputs["inputs_embeds"][0][where],
        deepstack=tuple(inputs.get("deepstack_visual_embeds") or ()),
    )


def _block_mask(media: Any) -> Any:
    """Causal, but the tokens of one picture see each other: Gemma 3's attention, shape (1, 1, L, L), bool.

    Source: the Gemma 3 technical report (2025), and transformers' mask for ``token_type_ids``. mlx-vlm
    passes a mask of ones instead, under which every token of the prompt sees every other.
    """
    starts = media & ~np.concatenate([[False], media[:-1]])
    group = np.where(media, np.cumsum(starts), -1)
    same = (group[:, None] == group[None, :]) & media[:, None]
    causal: Any = np.tril(np.ones((len(media), len(media)), dtype=bool))
    return mx.array(causal | same)[None, None]


def _no_chunks(model: Any, tokens: Any, inputs: Mapping[str, Any]) -> bool:
    for owner in (model, getattr(model, "language_model", model)):
        policy = getattr(owner, "chunked_prefill_policy", None)
        if callable(policy):
            return not policy(
                input_ids=tokens,
                inputs_embeds=inputs.get("inputs_embeds"),
                prompt_cache=None,
                draft_model=None,
                draft_kind=None,
                prefill_kwargs=dict(inputs),
            )
        if getattr(owner, "no_chunked_prefill", False):
            return True
    return False


__all__ = ["SPLICED", "Features", "Prefill", "embed", "encode", "stacked"]
