"""FLUX.2 klein on mflux's networks, which are built by the repository's configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from mlxengine import LoadContext, ModelCard
from mlxengine.configuration import thaw
from mlxengine.errors import IncompatibleWeightsError

from ..models import defaults_for
from ..sd.layout import document
from . import Abilities, Defaults, Job, Offer, Pixels, PromptReport, Step
from ._slices import FLOW_PARTS as _PARTS
from ._slices import flow_offer, warm

if TYPE_CHECKING:
    import mlx.core as mx

SUMMARY = "FLUX.2 klein on mflux"
# Its metadata asks for an older huggingface_hub, and on Linux for one CUDA build of mlx; its code does not.
REMEDY = 'pip install "mlxengine-diffusion[mflux]", then pip install --no-deps "mflux>=0.24,<0.25"'
_LENGTH = 512
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


def claim(card: ModelCard) -> Offer | None:
    if document(card, "model_index.json").get("_class_name") != "Flux2KleinPipeline":
        return None
    return flow_offer(card)


def missing() -> str | None:
    return None if importlib.util.find_spec("mflux") else "mflux"


def load(card: ModelCard, context: LoadContext) -> Flux2:
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.common.weights.loading.weight_loader import WeightLoader
    from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
    from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
    from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
    from mflux.models.flux2.weights.flux2_weight_definition import Flux2KleinWeightDefinition
    from mflux.utils.exceptions import ModelConfigError
    from transformers import AutoTokenizer

    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    # The library computes in this type whatever the weights are; half precision is slow on a CPU.
    ModelConfig.precision = mx.float32 if on_cpu else mx.bfloat16
    configs = {part: thaw(document(card, f"{part}/config.json")) for part in _PARTS}
    text = {**(configs["text_encoder"].get("rope_parameters") or {}), **configs["text_encoder"]}
    widths = tuple(configs["vae"]["block_out_channels"])
    vae = Flux2VAE(decoder_block_out_channels=widths)
    vae.encoder = Flux2Encoder(block_out_channels=widths)
    vae.decoder = Flux2Decoder(block_out_channels=widths)
    networks = {
        "text_encoder": Qwen3TextEncoder(**{name: text[name] for name in _TEXT if name in text}),
        "transformer": Flux2Transformer(
            **{name: configs["transformer"][name] for name in _TRANSFORMER if name in configs["transformer"]}
        ),
        "vae": vae,
    }
    try:
        weights = WeightLoader.load(Flux2KleinWeightDefinition, model_path=str(context.path))
        for part, network in networks.items():
            _fill(network, weights.components[part])
    except (ValueError, KeyError, FileNotFoundError, ModelConfigError) as error:
        raise IncompatibleWeightsError(f"{card.id} does not fit mflux's FLUX.2: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(
        str(context.path / "tokenizer"), local_files_only=True, trust_remote_code=False
    )
    distilled = bool(document(card, "model_index.json").get("is_distilled", False))
    own = Defaults(
        size=(1024, 1024), steps=4 if distilled else 50, guidance=1.0 if distilled else 4.0, scheduler=""
    )
    abilities = Abilities(
        defaults=defaults_for(card, own),
        size_step=16,
        largest=2048,
        guided=not distilled,
        negative=not distilled,
    )
    info = {"library": "mflux", "dtype": "float32" if on_cpu else "bfloat16"}
    return Flux2(networks, tokenizer, abilities, info)


def _fill(network: Any, weights: Any) -> None:
    """Give a network its weights; a missing, extra or misshapen one is a ``ValueError`` that names it."""
    from mlx.utils import tree_flatten

    # Frequencies are computed, not stored; the library keeps them among the parameters.
    own: list[tuple[str, Any]] = [
        item for item in tree_flatten(network.parameters()) if item[0].endswith("inv_freq")
    ]
    found: list[tuple[str, Any]] = tree_flatten(weights)
    network.load_weights([*own, *found], strict=True)


class Flux2:
    """A loaded FLUX.2: see `backends.Pipeline` for what each method does."""

    def __init__(
        self, networks: dict[str, Any], tokenizer: Any, abilities: Abilities, info: dict[str, Any]
    ) -> None:
        self.abilities = abilities
        self.info = info
        self._networks = networks
        self._tokenizer = tokenizer

    def warm(self) -> Iterator[None]:
        yield from warm(self._networks.values())

    def close(self) -> None:
        self._networks = {}

    def _text(self, prompt: str) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return text

    def read_prompt(self, job: Job) -> PromptReport:
        ids = list(self._tokenizer(self._text(job.prompt), verbose=False).input_ids)
        cut = ids[_LENGTH:]
        return PromptReport(
            tokens=min(len(ids), _LENGTH), truncated=self._tokenizer.decode(cut).strip() if cut else ""
        )

    def _states(self, prompt: str) -> tuple[mx.array, mx.array]:
        """What the transformer is told of a prompt, and its places."""
        import mlx.core as mx
        from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder

        found = self._tokenizer(self._text(prompt), padding="max_length", truncation=True, max_length=_LENGTH)
        states = self._networks["text_encoder"].get_prompt_embeds(
            mx.array([found.input_ids]), mx.array([found.attention_mask])
        )
        mx.eval(states)
        return states, Flux2PromptEncoder.prepare_text_ids(states)

    def denoise(self, job: Job, noise: mx.array | None = None) -> Iterator[Step | None]:
        import mlx.core as mx
        from mflux.models.common.config.config import Config
        from mflux.models.common.config.model_config import ModelConfig
        from mflux.models.flux2.latent_creator.flux2_latent_creator import Flux2LatentCreator

        told = [self._states(job.prompt)]
        yield None
        if job.guidance > 1:
            told.append(self._states(job.negative or ""))
            yield None
        latents, places, _, _ = Flux2LatentCreator.prepare_packed_latents(job.seed, job.height, job.width, 1)
        latents = (latents if noise is None else noise).astype(mx.float32)
        sampler = Config(
            ModelConfig.flux2_klein_4b(),
            num_inference_steps=job.steps,
            height=job.height,
            width=job.width,
            guidance=job.guidance,
            scheduler="flow_match_euler_discrete",
        ).scheduler
        transformer = self._networks["transformer"]
        for index in range(job.steps):
            outputs = [
                transformer(
                    hidden_states=latents.astype(ModelConfig.precision),
                    encoder_hidden_states=states,
                    timestep=sampler.timesteps[index],
                    img_ids=places,
                    txt_ids=words,
                    guidance=None,
                ).astype(mx.float32)
                for states, words in told
            ]
            output = outputs[0]
            if len(outputs) > 1:
                output = outputs[1] + job.guidance * (output - outputs[1])
            level, following = sampler.sigmas[index], sampler.sigmas[index + 1]
            clean = latents - level * output
            latents = latents + (following - level) * output
            mx.eval(latents, clean)
            yield Step(done=index + 1, total=job.steps, latents=latents, clean=clean)

    def decode(self, latents: mx.array, job: Job) -> Generator[None, None, Pixels]:
        return (yield from self._pixels(latents.reshape(1, job.height // 16, job.width // 16, -1)))

    def preview(self, clean: mx.array, job: Job) -> Generator[None, None, Pixels]:
        grid = clean.reshape(1, job.height // 16, job.width // 16, -1)
        return (yield from self._pixels(grid[:, ::2, ::2]))

    def _pixels(self, grid: mx.array) -> Generator[None, None, Pixels]:
        """The picture of latents (1, height / 16, width / 16, channels)."""
        import mlx.core as mx

        vae = self._networks["vae"]
        picture = vae.decode(vae.unpack_packed_latents(grid.transpose(0, 3, 1, 2)))
        pixels = mx.round(mx.clip(picture[0].astype(mx.float32) / 2 + 0.5, 0, 1) * 255).astype(mx.uint8)
        pixels = pixels.transpose(1, 2, 0)
        mx.eval(pixels)
        yield None
        found: Pixels = np.array(pixels)
        return found
