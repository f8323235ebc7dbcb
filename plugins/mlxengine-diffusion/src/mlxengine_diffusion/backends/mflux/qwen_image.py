"""Qwen-Image on mflux's networks, every size from the configurations."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import evolve, frozen
from mflux.models.common.config import ModelConfig
from mflux.models.qwen.model.qwen_text_encoder.qwen_encoder import QwenEncoder
from mflux.models.qwen.model.qwen_text_encoder.qwen_encoder_layer import QwenEncoderLayer
from mflux.models.qwen.model.qwen_text_encoder.qwen_rope import QwenRotaryEmbedding
from mflux.models.qwen.model.qwen_transformer.qwen_rope import QwenEmbedRopeMLX
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.qwen.model.qwen_transformer.qwen_transformer_block import QwenTransformerBlock
from mflux.models.qwen.model.qwen_vae.qwen_image_causal_conv_3d import QwenImageCausalConv3D
from mflux.models.qwen.model.qwen_vae.qwen_image_res_block_3d import QwenImageResBlock3D
from mflux.models.qwen.model.qwen_vae.qwen_image_resample_3d import QwenImageResample3D
from mflux.models.qwen.model.qwen_vae.qwen_image_rms_norm import QwenImageRMSNorm
from mflux.models.qwen.model.qwen_vae.qwen_vae import QwenVAE
from mlxengine import LoadContext, ModelCard

from ...models import defaults_for
from ...sd import tiles
from ...sd.layout import document
from .. import Defaults
from .._flow import ABILITIES, Flow, Levels, as_pixels, built, spread
from .._gpu import PICTURE, WORDS, Turns, added, attended, modulated, projected, turns, waiting
from .._networks import facts, filled, renamed, resize, usual_dtype
from .._prompts import report, tokenizer_in
from .._work import Job, Pixels, PromptReport

LENGTH = 1024
"""Most tokens of a prompt."""
_TILE = 256
_TINY = 1e-20  # below every mean of squares; the library divides by the root of their sum
# What its authors wrap prompts in.
_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_TRANSFORMER = (
    "in_channels",
    "out_channels",
    "num_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "patch_size",
    "zero_cond_t",
)


Seeing = Callable[[dict[str, Any], Any], tuple[tuple[str, str], ...]]


@frozen(eq=False)
class Told:
    """A prompt's states (1, tokens, width), and that all of them count."""

    states: mx.array
    mask: mx.array


def load(card: ModelCard, context: LoadContext) -> QwenImage:
    positional, named = arguments(card, context)
    return QwenImage(*positional, **named)


def arguments(
    card: ModelCard, context: LoadContext, seeing: Seeing | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `QwenImage` is made of, by position and by name.

    Args:
        seeing: gives the text encoder the half that looks at pictures.
    """
    dtype = usual_dtype()
    ModelConfig.precision = dtype
    parts = built(
        card,
        context,
        {
            "text_encoder": lambda config, files: _text_encoder(config, files, dtype, seeing),
            "transformer": lambda config, files: _transformer(config, files, dtype),
            "vae": _autoencoder,
        },
    )
    own = Defaults(size=(1328, 1328), steps=50, guidance=4.0)
    abilities = evolve(ABILITIES, defaults=defaults_for(card, own))
    info = {**facts("mflux", dtype, context), "place_width": 64}
    levels = Levels.read(document(card, "scheduler/scheduler_config.json"))
    vae = document(card, "vae/config.json")
    named = {
        "tokenizer": tokenizer_in(context.path / "tokenizer"),
        "mean": mx.array(vae["latents_mean"]),
        "deviation": mx.array(vae["latents_std"]),
    }
    return (parts, levels, abilities, info), named


def _transformer(config: dict[str, Any], files: list[Path], dtype: mx.Dtype) -> Any:
    made = QwenTransformer(**{name: config[name] for name in _TRANSFORMER if name in config})
    if axes := config.get("axes_dims_rope"):
        made.pos_embed = QwenEmbedRopeMLX(theta=10000, axes_dim=list(axes), scale_rope=True)
    made.pos_embed.__class__ = _Places
    for block in made.transformer_blocks:
        block.__class__ = _Block
    waiting(made.transformer_blocks)
    places = renamed(
        (r"\.attn_to_out\.", ".to_out."),
        (r"\.(img|txt)_mod_linear\.", r".\1_mod.1."),
        (r"\.(img|txt)_ff\.mlp_in\.", r".\1_mlp.net.0.proj."),
        (r"\.(img|txt)_ff\.mlp_out\.", r".\1_mlp.net.2."),
    )
    return filled(made, "transformer", files, places, dtype)


class _Places(QwenEmbedRopeMLX):  # type: ignore[misc]
    """The library's places as our attention has them: the prompt's first."""

    def __call__(self, *values: Any, **named: Any) -> Turns:
        picture, words = super().__call__(*values, **named)
        cosines, sines = (mx.concatenate(list(both)) for both in zip(words, picture, strict=True))
        return turns(cosines, sines)


class _Block(QwenTransformerBlock):  # type: ignore[misc]
    """The library's block in fewer kernels; it waits for no mask, since all of a prompt's states count."""

    def __call__(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        encoder_hidden_states_mask: mx.array,  # noqa: ARG002
        text_embeddings: mx.array,
        image_rotary_emb: Turns,
        block_idx: int | None = None,  # noqa: ARG002
        cond_embeddings: mx.array | None = None,
        is_cond_token: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        picture_said = _said(self.img_mod_linear, text_embeddings)
        words_said = _said(self.txt_mod_linear, text_embeddings)
        if cond_embeddings is not None and is_cond_token is not None:
            others = _said(self.img_mod_linear, cond_embeddings)
            pairs = zip(others, picture_said, strict=True)
            picture_said = [mx.where(is_cond_token, other, own) for other, own in pairs]
        heads = self.attn.num_heads
        words = modulated(self.txt_norm1, encoder_hidden_states, *words_said[:2])
        picture = modulated(self.img_norm1, hidden_states, *picture_said[:2])
        rows = (projected(self.attn, words, heads, WORDS), projected(self.attn, picture, heads, PICTURE))
        mixed = attended(image_rotary_emb, *rows)
        told = words.shape[1]
        words = added(encoder_hidden_states, words_said[2], self.attn.to_add_out(mixed[:, :told]))
        picture = added(hidden_states, picture_said[2], self.attn.attn_to_out[0](mixed[:, told:]))
        return (
            added(words, words_said[5], self.txt_ff(modulated(self.txt_norm2, words, *words_said[3:5]))),
            added(
                picture, picture_said[5], self.img_ff(modulated(self.img_norm2, picture, *picture_said[3:5]))
            ),
        )


def _said(layer: Any, time: mx.array) -> list[mx.array]:
    """What a block is told by the time: twice a shift, a scale and a gate, (1, 1, width)."""
    return list(mx.split(layer(nn.silu(time))[:, None], 6, axis=-1))


def _text_encoder(config: dict[str, Any], files: list[Path], dtype: mx.Dtype, seeing: Seeing | None) -> Any:
    """Qwen2.5-VL's language half; the other half where somebody asks it."""
    text = {**config, **(config.get("text_config") or {})}
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    width, heads = text["hidden_size"], text["num_attention_heads"]
    theta = float(rope.get("rope_theta") or text.get("rope_theta", 1e6))
    made = QwenEncoder(vocab_size=text["vocab_size"], hidden_size=width, num_hidden_layers=0)
    made.layers = [
        QwenEncoderLayer(
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=text["num_key_value_heads"],
            intermediate_size=text["intermediate_size"],
            rms_norm_eps=text["rms_norm_eps"],
            rope_theta=theta,
        )
        for _ in range(text["num_hidden_layers"])
    ]
    for layer in made.layers:
        layer.self_attn.rope_scaling = {"mrope_section": list(rope["mrope_section"])}
    waiting(made.layers)
    made.norm.eps = text["rms_norm_eps"]
    made.rotary_emb = QwenRotaryEmbedding(dim=width // heads, base=theta)
    own = () if seeing is None else seeing(config, made)
    places = renamed(*own, (r"^(?!visual\.)", "model."))
    ignored = r"^(visual|lm_head)\." if seeing is None else r"^lm_head\."
    return filled(made, "text_encoder", files, places, dtype, ignored=ignored)


def _autoencoder(config: dict[str, Any], files: list[Path]) -> Any:
    made = QwenVAE()
    narrow = config["base_dim"]
    resize(made, {times * 96: times * narrow for times in (1, 2, 4, 8, 12)})
    for _, item in made.named_modules():
        if isinstance(item, QwenImageRMSNorm):
            item.__class__ = _Norm
        elif isinstance(item, QwenImageCausalConv3D) and isinstance(item.kernel_size, int):
            item.__class__ = _Convolution
    steps = (QwenImageResBlock3D, QwenImageResample3D)
    waiting((item for _, item in made.named_modules() if isinstance(item, steps)), ahead=0)
    places = renamed(
        *(
            (rf"^encoder\.down_blocks\.{level}\.{ours}\.", f"encoder.down_blocks.[{3 * level + place}].")
            for level in range(4)
            for place, ours in enumerate((r"resnets\.0", r"resnets\.1", r"downsamplers\.0"))
        ),
        (r"\[(\d+)\]", r"\1"),
        (r"\.conv3d\.", "."),
        (r"\.skip_conv\.", ".conv_shortcut."),
        (r"\.up_block(\d)\.", r".up_blocks.\1."),
        (r"\.resample_conv\.", ".resample.1."),
        (r"(\.norm\w*)\.weight$", r"\1.gamma"),
    )
    # What only films need: the library leaves it out at this level.
    return filled(made, "vae", files, places, mx.float32, ignored=r"^encoder\.down_blocks\.5\.time_conv\.")


class _Norm(QwenImageRMSNorm):  # type: ignore[misc]
    """The library's norm over channels (1, channels, …), for every number of them and in one kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        last = mx.fast.rms_norm(mx.moveaxis(x, 1, -1), self.weight.reshape(-1), _TINY)
        return mx.moveaxis(last, -1, 1)


class _Convolution(QwenImageCausalConv3D):  # type: ignore[misc]
    """The library's convolution of one picture (1, channels, 1, height, width).

    What comes before the first picture of a film is zeros: only the kernel's last picture counts.
    """

    def __call__(self, x: mx.array) -> mx.array:
        layer = self.conv3d
        made = mx.conv2d(x[:, :, 0].transpose(0, 2, 3, 1), layer.weight[:, -1], padding=self.padding)
        found: mx.array = made + layer.bias
        return found.transpose(0, 3, 1, 2)[:, :, None]


class QwenImage(Flow):
    """A loaded Qwen-Image."""

    def __init__(
        self, *arguments: Any, tokenizer: Any, mean: mx.array, deviation: mx.array, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._tokenizer = tokenizer
        self._mean = mean
        self._deviation = deviation

    dropped = 34  # tokens of the template's beginning, which nobody is told

    def _ids(self, prompt: str) -> list[int]:
        return list(self._tokenizer(_TEMPLATE.format(prompt), verbose=False).input_ids)

    def read_prompt(self, job: Job) -> PromptReport:
        return report(self._tokenizer, self._ids(job.prompt)[self.dropped :], LENGTH)

    def _told(self, job: Job) -> Generator[None, None, list[Told]]:
        told = []
        with self._use("text_encoder", job) as encoder:
            for prompt in self._prompts(job):
                ids = mx.array([self._ids(prompt)[: self.dropped + LENGTH]])
                states = encoder(ids, mx.ones_like(ids))[:, self.dropped :]
                mx.eval(states)
                told.append(Told(states, mx.ones(states.shape[:2], dtype=mx.int32)))
                yield None
        return told

    def _prompts(self, job: Job) -> tuple[str, ...]:
        # An empty negative prompt is a space, as its authors' is.
        return (job.prompt, job.negative or " ")[: 2 if job.guidance > 1 else 1]

    def _predict(
        self,
        transformer: Any,
        latents: mx.array,
        sigma: float,
        told: Any,
        seen: Any,
        job: Job,
    ) -> mx.array:
        rows = latents if seen is None else mx.concatenate([latents, seen.rows], axis=1)
        asked = SimpleNamespace(scheduler=SimpleNamespace(sigmas=[sigma]), height=job.height, width=job.width)
        output: mx.array = transformer(
            t=0,
            config=asked,
            hidden_states=rows.astype(told.states.dtype),
            encoder_hidden_states=told.states,
            encoder_hidden_states_mask=told.mask,
            cond_image_grid=None if seen is None else seen.grids,
        )
        return output[:, : latents.shape[1]].astype(mx.float32)

    def _guided(self, outputs: list[mx.array], guidance: float) -> mx.array:
        """Guidance turns the prediction with the prompt; it leaves its length."""
        both = super()._guided(outputs, guidance)
        return both * (
            mx.linalg.norm(outputs[0], axis=-1, keepdims=True) / mx.linalg.norm(both, axis=-1, keepdims=True)
        )

    def _hidden(self, vae: Any, pixels: mx.array, job: Job) -> Generator[None, None, mx.array]:  # noqa: ARG002
        both = vae.quant_conv(vae.encoder(pixels.transpose(0, 3, 1, 2)[:, :, None]))
        mean: mx.array = both[:, : self._mean.shape[0], 0].transpose(0, 2, 3, 1)
        found = (mean - self._mean) / self._deviation
        mx.eval(found)
        yield None
        return found

    def _pixels(self, grid: mx.array, job: Job) -> Generator[None, None, Pixels]:
        with self.parts.use("vae", drop=job.low_memory) as vae:
            decoder = vae.decoder

            def run(part: mx.array) -> Generator[None, None, mx.array]:
                x = decoder.conv_in(vae.post_quant_conv(part.transpose(0, 3, 1, 2)[:, :, None]))
                for block in (decoder.mid_block, *(decoder[f"up_block{number}"] for number in range(4))):
                    x = block(x)
                    mx.eval(x)
                    yield None
                x = decoder.norm_out(x)
                x = decoder.conv_out(x * mx.sigmoid(x))
                mx.eval(x)
                yield None
                flat: mx.array = x[:, :, 0].transpose(0, 2, 3, 1)
                return flat

            latents = spread(grid) * self._deviation + self._mean
            whole = tiles.walk(run, latents, _TILE // 8, _TILE) if job.vae_tiling else run(latents)
            return as_pixels((yield from whole)[0])


__all__ = ["LENGTH", "QwenImage", "Told", "arguments", "load"]
