"""Qwen-Image on mflux's networks, every size from the configurations."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from attrs import evolve, frozen
from mflux.models.common.config import ModelConfig
from mflux.models.qwen.model.qwen_text_encoder.qwen_encoder import QwenEncoder
from mflux.models.qwen.model.qwen_text_encoder.qwen_encoder_layer import QwenEncoderLayer
from mflux.models.qwen.model.qwen_text_encoder.qwen_rope import QwenRotaryEmbedding
from mflux.models.qwen.model.qwen_transformer.qwen_rope import QwenEmbedRopeMLX
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.qwen.model.qwen_vae.qwen_image_rms_norm import QwenImageRMSNorm
from mflux.models.qwen.model.qwen_vae.qwen_vae import QwenVAE
from mlxengine import LoadContext, ModelCard

from ...models import defaults_for
from ...sd import tiles
from ...sd.layout import document
from .. import Defaults
from .._flow import ABILITIES, Flow, Levels, as_pixels, built, spread
from .._networks import facts, filled, renamed, resize, usual_dtype
from .._prompts import report, tokenizer_in
from .._work import Job, Pixels, PromptReport

LENGTH = 1024
"""Most tokens of a prompt."""
_TILE = 256
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
    places = renamed(
        (r"\.attn_to_out\.", ".to_out."),
        (r"\.(img|txt)_mod_linear\.", r".\1_mod.1."),
        (r"\.(img|txt)_ff\.mlp_in\.", r".\1_mlp.net.0.proj."),
        (r"\.(img|txt)_ff\.mlp_out\.", r".\1_mlp.net.2."),
    )
    return filled(made, "transformer", files, places, dtype)


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
            item.scale = math.sqrt(item.weight.shape[0])
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
