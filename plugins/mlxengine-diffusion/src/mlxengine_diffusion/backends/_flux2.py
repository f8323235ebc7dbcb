"""FLUX.2 klein on the networks of mlx-vlm or of mflux, which have the same ones, built by configuration.

Both libraries look up their geometry by the model's name; here the repository's configuration gives it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from mlxengine import LoadContext, ModelCard

from ..models import defaults_for
from ..sd.config import tile_side
from ..sd.layout import document
from . import Defaults
from ._flow import ABILITIES, Levels, as_pixels, built, gathered, spread
from ._prompts import ChatFlow, tokenizer_in
from ._work import Job, Pixels

if TYPE_CHECKING:
    import mlx.core as mx

    from ._gpu import Turns

PIPELINE = "Flux2KleinPipeline"
COPIES = 38  # features that live at once on a CPU: its layers attend and feed forward at the same time
_TRANSFORMER = (
    "patch_size",
    "in_channels",
    "out_channels",
    "num_layers",
    "num_single_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "timestep_guidance_channels",
    "mlp_ratio",
    "axes_dims_rope",
    "rope_theta",
    "guidance_embeds",
)
_TEXT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "head_dim",
    "attention_bias",
    "rope_theta",
)


# How far each reference picture stands from the one before, along the first coordinate.
_APART = 10
_MOST_REFERENCES = 10
_RESIZED = ("Flux2Upsample2D", "Flux2Downsample2D")


@frozen(kw_only=True)
class Library:
    """Where a library keeps its networks: modules, and what they are called everywhere.

    Args:
        name: of the distribution.
        settings, transformer, text_encoder, vae, encoder: modules of ``ModelConfig`` and of the networks.
    """

    name: str
    settings: str
    transformer: str
    text_encoder: str
    vae: str
    encoder: str


def load(card: ModelCard, context: LoadContext, library: Library) -> Flux2:
    import mlx.nn as nn
    from mlxengine.toolkit.launching import answering

    from ._adapter_names import FLUX2
    from ._gpu import waiting
    from ._networks import facts, filled, renamed, usual_dtype

    dtype = usual_dtype()
    # The libraries compute in this type whatever the weights are.
    importlib.import_module(library.settings).ModelConfig.precision = dtype
    parts_of = ("transformer", "vae", "encoder")
    networks = {name: importlib.import_module(getattr(library, name)) for name in parts_of}
    encoder: Callable[..., Any] = importlib.import_module(library.text_encoder).Qwen3TextEncoder

    def transformer(config: dict[str, Any], files: list[Path]) -> Any:
        made = networks["transformer"].Flux2Transformer(**_known(config, _TRANSFORMER))
        adjust(made)
        places = renamed(
            (r"^time_guidance_embed\.linear", "time_guidance_embed.timestep_embedder.linear"),
            (r"^(transformer_blocks\..*)\.to_out\.", r"\1.to_out.0."),
        )
        return filled(made, "transformer", files, places, dtype)

    def text_encoder(config: dict[str, Any], files: list[Path]) -> Any:
        made = encoder(**_known({**(config.get("rope_parameters") or {}), **config}, _TEXT))
        waiting(made.layers)
        return filled(made, "text_encoder", files, renamed((r"^", "model.")), dtype, ignored=r"^lm_head\.")

    def vae(config: dict[str, Any], files: list[Path]) -> Any:
        widths = tuple(config["block_out_channels"])
        narrow = tuple(config.get("decoder_block_out_channels") or widths)
        made = networks["vae"].Flux2VAE(decoder_block_out_channels=narrow)
        made.encoder = networks["encoder"].Flux2Encoder(block_out_channels=widths)
        made.quant_conv = nn.Conv2d(2 * made.latent_channels, 2 * made.latent_channels, 1)
        made.pixels_per_latent = 2 ** (len(widths) - 1)
        made.tile = tile_side(config) // made.pixels_per_latent
        steps = [
            item for _, item in made.named_modules() if "norm1" in item or type(item).__name__ in _RESIZED
        ]
        for item in steps:
            if "norm1" in item:
                answering(item, _resnet)
        waiting(steps, ahead=0)
        places = renamed((r"\.to_out\.", ".to_out.0."))
        return filled(made, "vae", files, places, dtype, ignored="num_batches_tracked$")

    parts = built(card, context, {"text_encoder": text_encoder, "transformer": transformer, "vae": vae})
    tokenizer = tokenizer_in(context.path / "tokenizer")
    distilled = bool(document(card, "model_index.json").get("is_distilled", False))
    own = Defaults(size=(1024, 1024), steps=4 if distilled else 50, guidance=1.0 if distilled else 4.0)
    abilities = evolve(
        ABILITIES,
        defaults=defaults_for(card, own),
        guided=not distilled,
        negative=not distilled,
        references=_MOST_REFERENCES,
    )
    info = {
        **facts(library.name, dtype, context),
        "place_width": document(card, "transformer/config.json").get("in_channels", 128),
    }
    # The size counts by a formula of the model's own.
    return Flux2(parts, Levels(dynamic=True), abilities, info, FLUX2, tokenizer=tokenizer)


def adjust(transformer: Any) -> None:
    """Give a transformer of the libraries blocks in fewer kernels; on a GPU they wait for each other."""
    from mlxengine.toolkit.launching import answering

    from ._gpu import turns, waiting

    places_of = type(transformer.pos_embed).__call__
    answering(transformer.pos_embed, lambda self, ids: turns(*places_of(self, ids)))
    for block in transformer.transformer_blocks:
        answering(block, _joint)
    for block in transformer.single_transformer_blocks:
        answering(block, _single)
    waiting([*transformer.transformer_blocks, *transformer.single_transformer_blocks])


def _joint(
    self: Any,
    hidden_states: mx.array,
    encoder_hidden_states: mx.array,
    temb_mod_params_img: Sequence[Sequence[mx.array]],
    temb_mod_params_txt: Sequence[Sequence[mx.array]],
    image_rotary_emb: Turns,
    **_: Any,
) -> tuple[mx.array, mx.array]:
    """The libraries' block in its input's numbers and in fewer kernels; it waits for nothing."""
    from ._gpu import PICTURE, WORDS, added, attended, modulated, projected

    (shift, scale, gate), picture_told = temb_mod_params_img
    (words_shift, words_scale, words_gate), words_told = temb_mod_params_txt
    heads = self.attn.heads
    words = modulated(self.norm1_context, encoder_hidden_states, words_shift, words_scale)
    picture = modulated(self.norm1, hidden_states, shift, scale)
    rows = (projected(self.attn, words, heads, WORDS), projected(self.attn, picture, heads, PICTURE))
    mixed = attended(image_rotary_emb, *rows)
    told = encoder_hidden_states.shape[1]
    words = added(encoder_hidden_states, words_gate, self.attn.to_add_out(mixed[:, :told]))
    picture = added(hidden_states, gate, self.attn.to_out(mixed[:, told:]))
    return (
        _fed(words, words_told, self.norm2_context, self.ff_context),
        _fed(picture, picture_told, self.norm2, self.ff),
    )


def _fed(x: mx.array, told: Sequence[mx.array], norm: Any, forward: Any) -> mx.array:
    from ._gpu import added, gated, modulated

    shift, scale, gate = told
    wide = forward.linear_in(modulated(norm, x, shift, scale))
    return added(x, gate, forward.linear_out(gated(*wide.split(2, axis=-1))))


def _single(
    self: Any,
    hidden_states: mx.array,
    temb_mod_params: Sequence[mx.array],
    image_rotary_emb: Turns,
    **_: Any,
) -> mx.array:
    """The libraries' block in its input's numbers and in fewer kernels; it waits for nothing."""
    import mlx.core as mx

    from ._gpu import added, attended, gated, modulated

    shift, scale, gate = temb_mod_params
    layer = self.attn
    inner = layer.inner_dim
    all_of_it = layer.to_qkv_mlp_proj(modulated(self.norm, hidden_states, shift, scale))
    *three, wide, more = all_of_it.split(
        [inner, 2 * inner, 3 * inner, 3 * inner + layer.mlp_hidden_dim], axis=-1
    )
    q, k, v = (x.reshape(*x.shape[:2], layer.heads, -1) for x in three)
    mixed = attended(image_rotary_emb, (layer.norm_q(q), layer.norm_k(k), v))
    return added(hidden_states, gate, layer.to_out(mx.concatenate([mixed, gated(wide, more)], axis=-1)))


def _resnet(self: Any, hidden_states: mx.array) -> mx.array:
    """The libraries' residual block (1, channels, height, width); its norms lay nothing out anew."""
    from ..sd import ops

    x = hidden_states.transpose(0, 2, 3, 1)
    y = self.conv1(ops.activated(self.norm1, x))
    y = self.conv2(ops.activated(self.norm2, y))
    found: mx.array = y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
    return found.transpose(0, 3, 1, 2)


def _known(config: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}


@frozen(eq=False)
class _Seen:
    """Pictures beside the one that is made: their latents (1, places, channels), and where they stand."""

    rows: mx.array
    places: mx.array


class Flux2(ChatFlow):
    """A loaded FLUX.2."""

    thinks = False

    def _states(self, encoder: Any, text: str) -> mx.array:
        import mlx.core as mx

        found = self._tokenizer(text, padding="max_length", truncation=True, max_length=self.LENGTH)
        states: mx.array = encoder.get_prompt_embeds(
            mx.array([found.input_ids]), mx.array([found.attention_mask])
        )
        return states

    def _sigmas(self, job: Job, places: int) -> list[float]:
        return self.levels.sigmas(job.steps, places, _follow(places, job.steps))

    def _seen(self, job: Job) -> Generator[None, None, _Seen | None]:
        """The reference pictures; where a part is made anew, the picture around it is the first of them."""
        import mlx.core as mx

        shown = list(job.references)
        if job.mask is not None and job.init is not None:
            shown.insert(0, job.init)
        rows, places = [], []
        for number, picture in enumerate(shown, 1):
            latents = yield from self._encoded(picture, job)
            rows.append(self._laid(latents))
            height, width = latents.shape[1] // 2, latents.shape[2] // 2
            places.append(_places(1, height, width, 1) + mx.array([_APART * number, 0, 0, 0]))
        if not rows:
            return None
        return _Seen(mx.concatenate(rows, axis=1), mx.concatenate(places, axis=1))

    def _predict(
        self, transformer: Any, latents: mx.array, sigma: float, told: Any, seen: _Seen | None, job: Job
    ) -> mx.array:
        import mlx.core as mx

        rows, places = latents, _places(1, job.height // 16, job.width // 16, 1)
        if seen is not None:
            rows = mx.concatenate([rows, seen.rows], axis=1)
            places = mx.concatenate([places, seen.places], axis=1)
        output: mx.array = transformer(
            hidden_states=rows.astype(told.dtype),
            encoder_hidden_states=told,
            timestep=mx.array(sigma * 1000),
            img_ids=places,
            txt_ids=_places(1, 1, 1, told.shape[1]),
            guidance=None,
        )
        return output[:, : latents.shape[1]].astype(mx.float32)

    def _hidden(self, vae: Any, pixels: mx.array, job: Job) -> Generator[None, None, mx.array]:  # noqa: ARG002
        import mlx.core as mx

        norm = vae.bn
        pixels = pixels.astype(norm.running_var.dtype)
        grid = gathered(vae.encode(pixels.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1))
        found = spread((grid - norm.running_mean) / mx.sqrt(norm.running_var + norm.eps))
        mx.eval(found)
        yield None
        return found

    def _pixels(self, grid: mx.array, job: Job) -> Generator[None, None, Pixels]:
        import mlx.core as mx

        from ..sd import tiles

        with self.parts.use("vae", drop=job.low_memory) as vae:

            def run(part: mx.array) -> Generator[None, None, mx.array]:
                made: mx.array = vae.decode(part.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
                mx.eval(made)
                yield None
                return made

            norm = vae.bn
            # float32 latents would have everything behind them computed in float32.
            latents = spread(grid * mx.sqrt(norm.running_var + norm.eps) + norm.running_mean)
            latents = latents.astype(norm.running_var.dtype)
            tile, scale = vae.tile, vae.pixels_per_latent
            whole = tiles.walk(run, latents, tile, tile * scale) if job.vae_tiling else run(latents)
            return as_pixels((yield from whole)[0])


def _places(*counts: int) -> mx.array:
    """The four coordinates of every place, the last running fastest: (1, places, 4)."""
    import mlx.core as mx

    grids = mx.meshgrid(*(mx.arange(count) for count in counts), indexing="ij")
    return mx.stack([grid.flatten() for grid in grids], axis=-1)[None]


def _follow(places: int, steps: int) -> float:
    """What places and steps amount to in FLUX.2's noise levels (the formula of its authors' sampler)."""
    many = 0.00016927 * places + 0.45666666
    if places > 4300:
        return many
    few = 8.73809524e-05 * places + 1.89833333
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope


__all__ = ["COPIES", "PIPELINE", "Flux2", "Library", "adjust", "load"]
