"""Z-Image and FLUX.2 klein on mlx-vlm's networks.

Of Qwen-Image it knows version 2.1 only, which is another model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve
from mlxengine import LoadContext, ModelCard

from ..models import defaults_for
from ..sd.layout import document
from . import Defaults, Offer, _flux2
from ._flow import ABILITIES, Levels, built
from ._prompts import ChatFlow, tokenizer_in
from ._slices import as_pixels, flow_offer
from ._work import Job, Pixels

if TYPE_CHECKING:
    import mlx.core as mx

    from ._flow import Flow

SUMMARY = "Z-Image and FLUX.2 klein on mlx-vlm"
REMEDY = 'pip install "mlxengine-diffusion[vlm]"'
_Z_IMAGE = "ZImagePipeline"
_FLUX2 = _flux2.Library(
    name="mlx-vlm",
    settings="mlx_vlm.models.flux2.constants",
    transformer="mlx_vlm.models.flux2.transformer.transformer",
    text_encoder="mlx_vlm.models.flux2.qwen.text_encoder",
    vae="mlx_vlm.models.flux2.vae.vae",
    encoder="mlx_vlm.models.flux2.vae.encoder.encoder",
)


def _pipeline(card: ModelCard) -> object:
    return document(card, "model_index.json").get("_class_name")


def claim(card: ModelCard) -> Offer | None:
    name = _pipeline(card)
    if name == _flux2.PIPELINE:
        return flow_offer(card, half_vae=True, copies=_flux2.COPIES)
    return flow_offer(card) if name == _Z_IMAGE else None


def missing() -> str | None:
    return None if importlib.util.find_spec("mlx_vlm") else "mlx-vlm"


def load(card: ModelCard, context: LoadContext) -> Flow:
    return (
        _flux2.load(card, context, _FLUX2) if _pipeline(card) == _flux2.PIPELINE else _z_image(card, context)
    )


def _z_image(card: ModelCard, context: LoadContext) -> ZImage:
    import mlx.core as mx
    from mlx_vlm.models.z_image.config import ZImageTextEncoderConfig, ZImageTransformerConfig
    from mlx_vlm.models.z_image.text_encoder import ZImageTextEncoder
    from mlx_vlm.models.z_image.transformer import ZImageTransformer

    from ..sd import weights
    from ..sd.autoencoder import build_vae
    from ._adapter_names import Z_IMAGE
    from ._gpu import waiting
    from ._networks import facts, filled, renamed, usual_dtype

    dtype = usual_dtype()

    def transformer(config: dict[str, Any], files: list[Path]) -> Any:
        made = ZImageTransformer(ZImageTransformerConfig.from_dict(config))
        adjust(made)
        places = renamed(
            (r"^final_layer\.(adaLN_modulation)\.0", r"all_final_layer.2-1.\1.1"),
            (r"^final_layer\.", "all_final_layer.2-1."),
            (r"^x_embedder\.", "all_x_embedder.2-1."),
            (r"^t_embedder\.linear1", "t_embedder.mlp.0"),
            (r"^t_embedder\.linear2", "t_embedder.mlp.2"),
        )
        return filled(made, "transformer", files, places, dtype)

    def text_encoder(config: dict[str, Any], files: list[Path]) -> Any:
        known = {**(config.get("rope_parameters") or {}), **config}
        made = ZImageTextEncoder(ZImageTextEncoderConfig.from_dict(known))
        waiting(made.layers)
        ignored = r"^lm_head\.|rotary_emb"
        # Published whole, or without its head and then without the prefix.
        names = set(weights.read_tensors(files))
        prefix = "model." if any(name.startswith("model.") for name in names) else ""
        return filled(made, "text_encoder", files, renamed((r"^", prefix)), dtype, ignored=ignored)

    def vae(config: dict[str, Any], files: list[Path]) -> Any:
        made = build_vae(config)
        weights.fill(made, "vae", weights.read_tensors(files), mx.float32)
        return made

    parts = built(card, context, {"text_encoder": text_encoder, "transformer": transformer, "vae": vae})
    levels = Levels.read(document(card, "scheduler/scheduler_config.json"))
    turbo = levels.shift <= 3.0
    own = Defaults(size=(1024, 1024), steps=8 if turbo else 50, guidance=0.0 if turbo else 4.0)
    tokenizer = tokenizer_in(context.path / "tokenizer")
    return ZImage(
        parts,
        levels,
        evolve(ABILITIES, defaults=defaults_for(card, own)),
        facts("mlx-vlm", dtype, context),
        Z_IMAGE,
        tokenizer=tokenizer,
    )


def adjust(transformer: Any) -> None:
    """Give the library's transformer blocks in fewer kernels; on a GPU they wait for each other."""
    from mlxengine.toolkit.launching import answering

    from ._gpu import turns, waiting

    # The library's answers in float32, which everything behind it would be computed in, weights included.
    time_of = type(transformer.t_embedder).__call__
    answering(transformer.t_embedder, lambda self, t: time_of(self, t).astype(self.linear2.bias.dtype))
    angles = transformer.rope.compute_freqs

    def turned(ids: mx.array) -> tuple[mx.array, ...]:
        cosines, sines = (item[0, :, ::2] for item in angles(ids))  # of the two in a pair they are the same
        return tuple(item[None] for item in turns(cosines, sines))

    transformer.rope.compute_freqs = turned
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    for block in blocks:
        answering(block, _block)
    waiting(blocks)


def _block(
    self: Any, x: mx.array, along: mx.array, across: mx.array, adaln_input: mx.array | None = None
) -> mx.array:
    """The library's block in its input's numbers and in fewer kernels."""
    import mlx.core as mx

    from ._gpu import PICTURE, added, attended, gated, projected, scaled

    attention, forward = self.attention, self.feed_forward

    def mixed(x: mx.array) -> mx.array:
        rows = projected(attention, x, attention.num_heads, PICTURE)
        found: mx.array = self.attention_norm2(attention.to_out[0](attended((along, across), rows)))
        return found

    def fed(x: mx.array) -> mx.array:
        found: mx.array = self.ffn_norm2(forward.w2(gated(forward.w1(x), forward.w3(x))))
        return found

    if adaln_input is None:
        x = x + mixed(self.attention_norm1(x))
        return x + fed(self.ffn_norm1(x))
    told = self.adaLN_modulation[0](adaln_input)[:, None]
    scale, gate, last_scale, last_gate = mx.split(told, 4, axis=-1)

    def normed(norm: Any, x: mx.array, scale: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, scaled(norm.weight, scale.reshape(-1)), norm.eps)

    x = added(x, mx.tanh(gate), mixed(normed(self.attention_norm1, x, scale)))
    return added(x, mx.tanh(last_gate), fed(normed(self.ffn_norm1, x, last_scale)))


class ZImage(ChatFlow):
    """A loaded Z-Image. Its latents are (1, 16, 1, height / 8, width / 8)."""

    thinks = True

    def _states(self, encoder: Any, text: str) -> mx.array:
        import mlx.core as mx

        ids = self._tokenizer(text, truncation=True, max_length=self.LENGTH).input_ids
        states: mx.array = encoder(mx.array([ids]), output_penultimate=True)
        return states

    def _shape(self, job: Job) -> tuple[int, ...]:
        return (1, 16, 1, job.height // 8, job.width // 8)

    def _predict(
        self,
        transformer: Any,
        latents: mx.array,
        sigma: float,
        told: Any,
        seen: Any,  # noqa: ARG002
        job: Job,  # noqa: ARG002
    ) -> mx.array:
        import mlx.core as mx

        output: mx.array = transformer(latents.astype(told.dtype), mx.array([1 - sigma]), told)
        return -output.astype(mx.float32)

    def _guided(self, outputs: list[mx.array], guidance: float) -> mx.array:
        # The prediction with the prompt is the base, as in the model's own pipeline.
        return outputs[0] + guidance * (outputs[0] - outputs[1])

    def _grid(self, latents: mx.array, job: Job) -> mx.array:  # noqa: ARG002
        return latents[:, :, 0].transpose(0, 2, 3, 1)

    def _laid(self, latents: mx.array) -> mx.array:
        return latents.transpose(0, 3, 1, 2)[:, :, None]

    def _hidden(self, vae: Any, pixels: mx.array, job: Job) -> Generator[None, None, mx.array]:
        from ..sd.autoencoder import encoded

        return encoded(vae, pixels, tiled=job.vae_tiling)

    def _pixels(self, grid: mx.array, job: Job) -> Generator[None, None, Pixels]:
        from ..sd.autoencoder import decoded

        with self.parts.use("vae", drop=job.low_memory) as vae:
            return as_pixels((yield from decoded(vae, grid, tiled=job.vae_tiling)))
