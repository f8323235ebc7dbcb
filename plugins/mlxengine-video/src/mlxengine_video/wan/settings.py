"""The settings of a repository's networks and sampler: followed, without effect, or refused. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError

Read = Callable[[str], Mapping[str, Any]]
"""A configuration by its path in the repository; an error where there is none."""
HINT = "Served are Wan 2.1 and 2.2 as diffusers lays them out, by a prompt or a first picture."
PLACES = 1024
"""How far the tables of rotary positions go that the library makes."""

_TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
    "rope_max_seq_len": PLACES,
}
_TRANSFORMER_READ = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "eps",
)
_VAE = {"attn_scales": (), "scale_factor_temporal": 4}
_VAE_READ = (
    "base_dim",
    "decoder_base_dim",
    "z_dim",
    "dim_mult",
    "num_res_blocks",
    "temperal_downsample",
    "latents_mean",
    "latents_std",
    "is_residual",
    "patch_size",
    "in_channels",
    "out_channels",
    "scale_factor_spatial",
    "dropout",  # of training
)
_TEXT = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "quantization_config": None,
}
# Of training, or of noise levels that flow matching does not look at.
_UNUSED = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
    "time_shift_type",
)
_SCHEDULER = {
    "prediction_type": ("epsilon", ("flow_prediction",)),
    "use_flow_sigmas": (False, (True,)),
    "predict_x0": (True, (True,)),
    # diffusers takes bh2 where the repository has a name of another family of solvers.
    "solver_type": ("bh2", ("bh2", "midpoint", "heun", "logrho")),
    "lower_order_final": (True, (True,)),
    "final_sigmas_type": ("zero", ("zero",)),
    "solver_order": (2, (1, 2, 3)),
}
_SCHEDULER_READ = ("flow_shift", "num_train_timesteps", "disable_corrector")


# Of Wan 2.1's autoencoder, where a repository leaves them out.
_MEAN: tuple[float, ...] = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD: tuple[float, ...] = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def transformer(document: Read, part: str) -> dict[str, Any]:
    """A transformer's configuration, with diffusers' defaults for what it leaves out."""
    place = f"{part}/config.json"
    config = document(place)
    _class(config, "WanTransformer3DModel", place)
    _same(config, _TRANSFORMER, place)
    _known(config, (*_TRANSFORMER, *_TRANSFORMER_READ), place)
    usual = {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "eps": 1e-6,
    }
    return {**usual, **config}


def vae(document: Read) -> dict[str, Any]:
    """The autoencoder's configuration, with diffusers' defaults for what it leaves out."""
    place = "vae/config.json"
    config = document(place)
    _class(config, "AutoencoderKLWan", place)
    _same(config, _VAE, place)
    _known(config, (*_VAE, *_VAE_READ), place)
    usual = {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "temperal_downsample": (False, True, True),
        "is_residual": False,
        "in_channels": 3,
        "out_channels": 3,
        "scale_factor_spatial": 8,
        "latents_mean": _MEAN,
        "latents_std": _STD,
    }
    found = {**usual, **config}
    found["decoder_base_dim"] = found.get("decoder_base_dim") or found["base_dim"]
    # The networks of 2.1 and of 2.2: the second sees two by two pixels at once, and has ways around blocks.
    patch = 2 if found["is_residual"] else 1
    wrong = [
        f"{key}={found.get(key)}"
        for key, value in (
            ("patch_size", 2 if patch == 2 else None),
            ("in_channels", 3 * patch**2),
            ("out_channels", 3 * patch**2),
            ("scale_factor_spatial", 8 * patch),
        )
        if found.get(key) != value
    ]
    halved = list(found["temperal_downsample"])
    if len(found["dim_mult"]) != 4 or len(halved) != 3 or sum(halved) != 2:
        wrong.append(f"dim_mult={found['dim_mult']}, temperal_downsample={halved}")
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} (is_residual={found['is_residual']}) has settings that are not implemented: "
            f"{', '.join(wrong)}.",
            hint=HINT,
        )
    if {len(found["latents_mean"]), len(found["latents_std"])} != {found["z_dim"]}:
        raise IncompatibleWeightsError(
            f"{place}: latents_mean and latents_std are not of {found['z_dim']} numbers.",
            hint="Verify the repository's files.",
        )
    return found


def scheduler(document: Read) -> dict[str, Any]:
    place = "scheduler/scheduler_config.json"
    config = document(place)
    _class(config, "UniPCMultistepScheduler", place)
    wrong = [
        f"{key}={config.get(key, usual)!r}"
        for key, (usual, followed) in _SCHEDULER.items()
        if config.get(key, usual) not in followed
    ]
    found = {"flow_shift": 1.0, "num_train_timesteps": 1000, "disable_corrector": (), **config}
    wrong += [f"{key}={found[key]!r}" for key in ("flow_shift", "num_train_timesteps") if not found[key] > 0]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not implemented: {', '.join(wrong)}.", hint=HINT
        )
    _known(config, (*_SCHEDULER, *_SCHEDULER_READ, *_UNUSED), place)
    return {**found, "solver_order": config.get("solver_order", 2)}


def text_encoder(document: Read) -> Mapping[str, Any]:
    """The text encoder's configuration."""
    place = "text_encoder/config.json"
    config = document(place)
    if (found := config.get("model_type")) != "umt5":
        raise UnsupportedArchitectureError(f"{place} is of no UMT5, but of {found}.", hint=HINT)
    _same(config, _TEXT, place)
    return config


def _class(config: Mapping[str, Any], name: str, place: str) -> None:
    if (found := config.get("_class_name")) != name:
        raise UnsupportedArchitectureError(f"{place} is of a {found}, not of a {name}.", hint=HINT)


def _same(config: Mapping[str, Any], fixed: Mapping[str, Any], place: str) -> None:
    """Refuse what the networks have no setting for; what is left out has the value that they have."""
    wrong = [f"{key}={config[key]!r}" for key, value in fixed.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not implemented: {', '.join(wrong)}.", hint=HINT
        )


def _known(config: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    """Refuse settings that we have never heard of, unless they are off."""
    wrong = [key for key, value in config.items() if value and not key.startswith("_") and key not in keys]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not known here: "
            f"{', '.join(f'{key}={config[key]!r}' for key in wrong)}.",
            hint=HINT,
        )


__all__ = ["HINT", "PLACES", "Read", "scheduler", "text_encoder", "transformer", "vae"]
