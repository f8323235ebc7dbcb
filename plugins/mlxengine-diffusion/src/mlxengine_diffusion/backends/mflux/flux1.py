"""FLUX.1 dev and schnell: the transformer and T5 of mflux, our CLIP and autoencoder.

mflux writes FLUX.1's one geometry into its layers. Here every size comes from the configurations, so that
smaller relatives run too; attention that counts on the old sizes is replaced.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import evolve, frozen
from mflux.models.common.config import ModelConfig
from mflux.models.flux.model.flux_text_encoder.t5_encoder import t5_self_attention
from mflux.models.flux.model.flux_text_encoder.t5_encoder.t5_block import T5Block
from mflux.models.flux.model.flux_text_encoder.t5_encoder.t5_encoder import T5Encoder
from mflux.models.flux.model.flux_text_encoder.t5_encoder.t5_layer_norm import T5LayerNorm
from mflux.models.flux.model.flux_transformer.embed_nd import EmbedND
from mflux.models.flux.model.flux_transformer.joint_transformer_block import JointTransformerBlock
from mflux.models.flux.model.flux_transformer.single_transformer_block import SingleTransformerBlock
from mflux.models.flux.model.flux_transformer.transformer import Transformer
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError

from ...models import defaults_for
from ...sd import weights
from ...sd.autoencoder import build_vae, decoded, encoded
from ...sd.clip import build_clip
from ...sd.layout import document
from ...sd.prompts import Piece
from ...sd.text import Tokenizer, encode
from .. import Defaults
from .._adapter_names import FLUX1
from .._flow import ABILITIES, Flow, Levels, as_pixels, built, spread
from .._gpu import PICTURE, WORDS, Turns, added, attended, modulated, projected, turns, waiting
from .._networks import facts, filled, renamed, resize, usual_dtype
from .._prompts import tokenizer_in
from .._redux import FILE, load_redux
from .._work import Job, Pixels, PromptReport

_WIDTH, _T5_WIDTH = 3072, 4096
_SILENT = 512  # places of a prompt that says nothing, where a picture alone does


@frozen(eq=False)
class _Told:
    """A prompt: T5's states (1, tokens, width), and CLIP's summary (1, width)."""

    states: mx.array
    pooled: mx.array


@frozen(eq=False)
class _Seen:
    """What stands beside the latents: as further places, which are said, or as further channels."""

    rows: mx.array
    places: mx.array | None = None


# The sizes that Kontext was trained with, each also the other way round (source: diffusers 0.42.1,
# ``pipelines/flux/pipeline_flux_kontext.py``).
_KONTEXT = ((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184))
_KONTEXT_SIZES = tuple(
    size for one in (*_KONTEXT, (944, 1104), (1024, 1024)) for size in dict.fromkeys((one, one[::-1]))
)


def load(card: ModelCard, context: LoadContext) -> Flux1:
    dtype = usual_dtype()
    ModelConfig.precision = dtype

    def clip(config: dict[str, Any], files: list[Path]) -> Any:
        made = build_clip(config, projection=False)
        weights.fill(made, "text_encoder", weights.read_tensors(files), dtype)
        return made

    parts = built(
        card,
        context,
        {
            "text_encoder": clip,
            "text_encoder_2": lambda config, files: _t5(config, files, dtype),
            "transformer": lambda config, files: _transformer(config, files, dtype),
            "vae": _autoencoder,
        },
    )
    network = document(card, "transformer/config.json")
    guided = bool(network.get("guidance_embeds"))
    words = tokenizer_in(context.path / "tokenizer_2")
    length = document(card, "text_encoder/config.json")["max_position_embeddings"]
    pipeline = document(card, "model_index.json")["_class_name"]
    own = Defaults(size=(1024, 1024), steps=28 if guided else 4, guidance=3.5 if guided else 0.0)
    if pipeline == "FluxFillPipeline":
        own = Defaults(size=(1024, 1024), steps=50, guidance=30.0)
    abilities = evolve(
        ABILITIES,
        defaults=defaults_for(card, own),
        guided=guided,
        negative=False,
        fills=pipeline == "FluxFillPipeline",
        references=int(pipeline == "FluxKontextPipeline"),
        reference_sizes=_KONTEXT_SIZES,
        ip_adapter=FILE,
    )
    return Flux1(
        parts,
        Levels.read(document(card, "scheduler/scheduler_config.json")),
        abilities,
        {**facts("mflux", dtype, context), "place_width": 64},
        FLUX1,
        clip_words=Tokenizer(context.path / "tokenizer", length),
        words=words,
        # What the two were trained with.
        length=512 if guided else 256,
        widths=(network["joint_attention_dim"], network["pooled_projection_dim"]),
    )


def _transformer(config: dict[str, Any], files: list[Path], dtype: mx.Dtype) -> Any:
    heads, each = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * each
    like = SimpleNamespace(
        supports_guidance=config["guidance_embeds"], x_embedder_input_dim=lambda: config["in_channels"]
    )
    made = Transformer(like, config["num_layers"], config["num_single_layers"])
    sizes = {times * _WIDTH: times * width for times in (1, 2, 3, 4, 5, 6)}
    sizes |= {768: config["pooled_projection_dim"], _T5_WIDTH: config["joint_attention_dim"], 128: each}
    resize(made, sizes)
    made.pos_embed.axes_dim = list(config["axes_dims_rope"])
    made.pos_embed.__class__ = _Places
    made.norm_out.embedding_dim = width
    for block in made.transformer_blocks:
        block.__class__ = _Joint
    for block in made.single_transformer_blocks:
        block.__class__ = _Single
    for item in (*made.transformer_blocks, *made.single_transformer_blocks):
        item.attn.num_heads = heads
    waiting([*made.transformer_blocks, *made.single_transformer_blocks])
    places = renamed((r"(\.ff\w*)\.linear1\.", r"\1.net.0.proj."), (r"(\.ff\w*)\.linear2\.", r"\1.net.2."))
    return filled(made, "transformer", files, places, dtype)


class _Places(EmbedND):  # type: ignore[misc]
    """The library's places as our attention has them."""

    def __call__(self, ids: mx.array) -> Turns:
        found = super().__call__(ids)[0, 0]
        return turns(found[..., 0, 0], found[..., 1, 0])


def _told_by(layer: Any, summary: mx.array, count: int) -> list[mx.array]:
    """What a block is told by the time and the prompt's summary (1, width): so many of (1, 1, width)."""
    return list(mx.split(layer.linear(nn.silu(summary))[:, None], count, axis=-1))


class _Joint(JointTransformerBlock):  # type: ignore[misc]
    """The library's block for every width, in its input's numbers and in fewer kernels."""

    def __call__(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        text_embeddings: mx.array,
        rotary_embeddings: Turns,
    ) -> tuple[mx.array, mx.array]:
        both = ((encoder_hidden_states, WORDS, "norm1_context"), (hidden_states, PICTURE, "norm1"))
        said, rows = [], []
        for x, names, norm in both:
            shift, scale, *rest = _told_by(self[norm], text_embeddings, 6)
            said.append(rest)
            x = modulated(self[norm].norm, x, shift, scale)
            rows.append(projected(self.attn, x, self.attn.num_heads, names))
        mixed = attended(rotary_embeddings, *rows)
        told = encoder_hidden_states.shape[1]
        words = self.attn.to_add_out(mixed[:, :told])
        picture = self.attn.to_out[0](mixed[:, told:])
        return (
            _fed(encoder_hidden_states, words, said[0], self.norm2_context, self.ff_context),
            _fed(hidden_states, picture, said[1], self.norm2, self.ff),
        )


def _fed(x: mx.array, mixed: mx.array, said: list[mx.array], norm: Any, forward: Any) -> mx.array:
    """A block's second half: attention's rows are added, and what the feed-forward layers make of them."""
    gate, shift, scale, last = said
    x = added(x, gate, mixed)
    return added(x, last, forward(modulated(norm, x, shift, scale)))


class _Single(SingleTransformerBlock):  # type: ignore[misc]
    """The library's block for every width, in its input's numbers and in fewer kernels."""

    def __call__(
        self, hidden_states: mx.array, text_embeddings: mx.array, rotary_embeddings: Turns
    ) -> mx.array:
        shift, scale, gate = _told_by(self.norm, text_embeddings, 3)
        x = modulated(self.norm.norm, hidden_states, shift, scale)
        mixed = attended(rotary_embeddings, projected(self.attn, x, self.attn.num_heads, PICTURE))
        wide = nn.gelu_approx(self.proj_mlp(x))
        return added(hidden_states, gate, self.proj_out(mx.concatenate([mixed, wide], axis=-1)))


def _t5(config: dict[str, Any], files: list[Path], dtype: mx.Dtype) -> Any:
    width, heads = config["d_model"], config["num_heads"]
    if width != heads * config["d_kv"] or config.get("feed_forward_proj") != "gated-gelu":
        raise UnsupportedArchitectureError(
            f"T5 with {heads} heads of {config['d_kv']} for a width of {width} and "
            f"{config.get('feed_forward_proj')} is not implemented; FLUX.1's is."
        )
    made = T5Encoder()
    made.t5_blocks = [T5Block(number) for number in range(config["num_layers"])]
    # First the heads: their number is also the width of one of them.
    sizes = {64: heads, _T5_WIDTH: width, 10240: config["d_ff"], 32128: config["vocab_size"]}
    resize(made, sizes)
    for _, item in made.named_modules():
        if isinstance(item, t5_self_attention.T5SelfAttention):
            item.__class__ = _T5Attention
        elif isinstance(item, T5LayerNorm):
            item.__class__ = _T5Norm
    waiting(made.t5_blocks)
    places = renamed(
        (r"^final_layer_norm", "encoder.final_layer_norm"),
        (r"^t5_blocks\.\d+(.*relative_attention_bias)", r"t5_blocks.0\1"),
        (r"^t5_blocks\.(\d+)\.attention\.", r"encoder.block.\1.layer.0."),
        (r"^t5_blocks\.(\d+)\.ff\.", r"encoder.block.\1.layer.1."),
    )
    return filled(made, "text_encoder_2", files, places, dtype, ignored=r"^encoder\.embed_tokens\.")


class _T5Norm(T5LayerNorm):  # type: ignore[misc]
    """The library's norm in its input's numbers; it is computed in float32 all the same."""

    def __call__(self, hidden_states: mx.array) -> mx.array:
        return mx.fast.rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _T5Attention(t5_self_attention.T5SelfAttention):  # type: ignore[misc]
    """The library's attention for every number of heads."""

    def __call__(self, hidden_states: mx.array) -> mx.array:
        heads = self.relative_attention_bias.weight.shape[1]
        q, k, v = (
            mx.unflatten(layer(hidden_states), -1, (heads, -1)).transpose(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        bias = self._compute_bias(hidden_states.shape[1]).astype(q.dtype)
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=bias)
        found: mx.array = self.o(mixed.transpose(0, 2, 1, 3).flatten(-2, -1))
        return found


def _autoencoder(config: dict[str, Any], files: list[Path]) -> Any:
    made = build_vae(config)
    weights.fill(made, "vae", weights.read_tensors(files), mx.float32)
    return made


class Flux1(Flow):
    """A loaded FLUX.1."""

    def __init__(
        self,
        *arguments: Any,
        clip_words: Tokenizer,
        words: Any,
        length: int,
        widths: tuple[int, int],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._clip_words = clip_words
        self._words = words
        self._length = length
        self._widths = widths

    def read_prompt(self, job: Job) -> PromptReport:
        """Tokens of the prompt as T5 counts them; it reads the most of it."""
        ids = list(self._words(job.prompt, verbose=False).input_ids)
        cut = ids[self._length - 1 : -1] if len(ids) > self._length else []
        return PromptReport(
            tokens=min(len(ids), self._length), truncated=self._words.decode(cut).strip() if cut else ""
        )

    def _told(self, job: Job) -> Generator[None, None, list[_Told]]:
        """The prompt, and behind it what pictures say; those of several are added up."""
        told = _Told(mx.zeros((1, _SILENT, self._widths[0])), mx.zeros((1, self._widths[1])))
        if job.prompt or not job.ip_adapters:
            told = yield from self._read(job)
        words = None
        for seen in job.ip_adapters:
            # 0.9 GB that are needed for a moment: they are read again for the next picture.
            adapter = load_redux(seen.path, told.states.shape[-1], getattr(mx, self.info["dtype"]))
            own = seen.strength * (yield from adapter.told(seen.pixels))
            if words is not None and words.shape != own.shape:
                raise IncompatibleWeightsError(
                    f"{seen.path.name} looks at another number of places than the one before."
                )
            words = own if words is None else words + own
        if words is not None:
            told = _Told(mx.concatenate([told.states.astype(words.dtype), words], axis=1), told.pooled)
            mx.eval(told.states)
        return [told]

    def _read(self, job: Job) -> Generator[None, None, _Told]:
        with self._use("text_encoder", job) as encoder:
            # CLIP gives the summary of the prompt alone, and reads no more than fits at once.
            words = self._clip_words
            rows = words.rows(words.chunks([[Piece(job.prompt)]])[:1])
            _, pooled = encode(encoder, *rows, 1, normed=True)
            mx.eval(pooled)
        yield None
        ids = self._words(
            job.prompt, padding="max_length", truncation=True, max_length=self._length
        ).input_ids
        with self._use("text_encoder_2", job) as encoder:
            states = encoder(mx.array([ids]))
            mx.eval(states)
        yield None
        return _Told(states, pooled)

    def _predict(
        self, transformer: Any, latents: mx.array, sigma: float, told: Any, seen: _Seen | None, job: Job
    ) -> mx.array:
        asked = SimpleNamespace(
            scheduler=SimpleNamespace(sigmas=[sigma]),
            num_train_steps=1000,
            precision=mx.float32,  # of the noise level
            guidance=job.guidance,
            height=job.height,
            width=job.width,
        )
        rows, places = latents, None
        if seen is not None:
            places = seen.places
            rows = mx.concatenate([latents, seen.rows], axis=-1 if places is None else 1)
        output: mx.array = transformer(
            t=0,
            config=asked,
            hidden_states=rows.astype(told.states.dtype),
            prompt_embeds=told.states,
            pooled_prompt_embeds=told.pooled,
            kontext_image_ids=places,
        )
        return output[:, : latents.shape[1]].astype(mx.float32)

    def _seen(self, job: Job) -> Generator[None, None, _Seen | None]:
        """Kontext: the reference picture. Fill: the picture with a grey hole in it, and the hole."""
        if self.abilities.fills and job.init is not None and job.mask is not None:
            hole = mx.array(job.mask)[..., None] > 0
            around = yield from self._encoded(mx.where(hole, 127.5, mx.array(job.init)), job)
            # The mask is as fine as the pixels: a latent's 64 of them are its channels.
            _, height, width, _ = around.shape
            fine = hole.reshape(1, height, 8, width, 8).transpose(0, 1, 3, 2, 4).reshape(1, height, width, 64)
            both = [self._laid(around), self._laid(fine.astype(around.dtype))]
            return _Seen(mx.concatenate(both, axis=-1))
        if not job.references:
            return None
        latents = yield from self._encoded(job.references[0], job)
        grids = mx.meshgrid(*(mx.arange(side // 2) for side in latents.shape[1:3]), indexing="ij")
        places = mx.stack([mx.ones_like(grids[0]), *grids], axis=-1).reshape(1, -1, 3)
        return _Seen(self._laid(latents), places)

    def _hidden(self, vae: Any, pixels: mx.array, job: Job) -> Generator[None, None, mx.array]:
        return encoded(vae, pixels, tiled=job.vae_tiling)

    def _pixels(self, grid: mx.array, job: Job) -> Generator[None, None, Pixels]:
        with self.parts.use("vae", drop=job.low_memory) as vae:
            return as_pixels((yield from decoded(vae, spread(grid), tiled=job.vae_tiling)))


__all__ = ["Flux1", "load"]
