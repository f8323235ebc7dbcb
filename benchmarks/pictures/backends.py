"""mlx-vlm against mflux where both know a model: the picture beside diffusers', and the time of a step.

    python -m benchmarks.pictures.backends [--rounds 8] [--width 768] [--side 256]

Needs an environment with mlx-vlm and mflux (see `mlxengine_diffusion.backends.mflux`). Both transformers get
the same random weights and take turns (A B A B …) in one process, so that other work on the machine strikes
both alike; processor time is what counts. The pictures are those of the tiny models whose references are
stored with the plugin's tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "plugins" / "mlxengine-diffusion" / "tests" / "extras"
sys.path[:0] = [str(TESTS), str(ROOT / "core"), str(ROOT / "plugins" / "mlxengine-diffusion" / "src")]

Step = Callable[[], Any]


def shared(networks: dict[str, Any], names: dict[str, Callable[[str], str]]) -> None:
    """Give the same random weights to networks whose parameters ``names`` calls the same."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    known: dict[str, Any] = {}
    for library, network in networks.items():
        filled = []
        for path, value in tree_flatten(network.parameters()):
            name = names[library](path)
            if name not in known:
                fan = 1 if value.ndim == 1 else int(np.prod(value.shape[1:]))
                known[name] = mx.random.normal(value.shape) / fan**0.5
            filled.append((path, known[name]))
        network.load_weights(filled, strict=True)
    mx.eval(list(known.values()))


def flux2(width: int, side: int) -> dict[str, Step]:
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer as Theirs
    from mlx_vlm.models.flux2.constants import ModelConfig as Settings
    from mlx_vlm.models.flux2.transformer.transformer import Flux2Transformer as Ours
    from mlxengine_diffusion.backends._flux2 import _places

    ModelConfig.precision = Settings.precision = mx.float32
    shape = {
        "num_layers": 2,
        "num_single_layers": 6,
        "num_attention_heads": width // 128,
        "joint_attention_dim": 3 * width,
    }
    networks = {"mlx-vlm": Ours(**shape), "mflux": Theirs(**shape)}
    shared(networks, dict.fromkeys(networks, str))
    latents, told = mx.random.normal((1, side**2 // 256, 128)), mx.random.normal((1, 512, 3 * width))
    asked = {
        "hidden_states": latents,
        "encoder_hidden_states": told,
        "timestep": mx.array(500.0),
        "img_ids": _places(1, side // 16, side // 16, 1),
        "txt_ids": _places(1, 1, 1, 512),
        "guidance": None,
    }
    return {name: lambda network=network: network(**asked) for name, network in networks.items()}


def z_image_networks(config: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer as Theirs
    from mlx_vlm.models.z_image.config import ZImageTransformerConfig
    from mlx_vlm.models.z_image.transformer import ZImageTransformer as Ours

    ModelConfig.precision = mx.float32
    own = {name: value for name, value in config.items() if name != "n_kv_heads"}
    return {"mlx-vlm": Ours(ZImageTransformerConfig.from_dict(config)), "mflux": Theirs(**own)}


def z_image_name(path: str) -> str:
    """mflux's name of a parameter, as mlx-vlm calls it."""
    return path.replace("all_final_layer.2-1", "final_layer").replace("all_x_embedder.2-1", "x_embedder")


def z_image_call(library: str, network: Any, latents: Any, time_left: float, told: Any) -> Any:
    """Minus the velocity, for latents (1, 16, 1, height, width)."""
    import mlx.core as mx

    if library == "mlx-vlm":
        return network(latents, mx.array([1 - time_left]), told)
    level = mx.array([time_left])
    return -network(x=latents[0], timestep=1 - level, sigmas=level, cap_feats=told[0])[None]


def z_image(width: int, side: int) -> dict[str, Step]:
    import mlx.core as mx

    config = {
        "dim": width,
        "n_layers": 8,
        "n_refiner_layers": 2,
        "n_heads": width // 128,
        "n_kv_heads": width // 128,
        "cap_feat_dim": width,
    }
    networks = z_image_networks(config)
    shared(networks, {"mlx-vlm": str, "mflux": z_image_name})
    latents = mx.random.normal((1, 16, 1, side // 8, side // 8))
    told = mx.random.normal((1, 64, width))
    return {
        name: lambda name=name, network=network: z_image_call(name, network, latents, 0.5, told)
        for name, network in networks.items()
    }


def turns(steps: dict[str, Step], rounds: int) -> dict[str, Any]:
    import mlx.core as mx

    outputs = {}
    for name, step in steps.items():
        outputs[name] = step()
        mx.eval(outputs[name])
        mx.eval(step())
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            mx.eval(step())
            seconds[name].append(time.process_time() - start)
    pairs = [b / a for a, b in zip(seconds["mlx-vlm"], seconds["mflux"], strict=True)]
    first, second = (np.array(item) for item in outputs.values())
    return {
        **{name: round(statistics.median(found), 4) for name, found in seconds.items()},
        "mflux / mlx-vlm": round(statistics.median(pairs), 3),
        "pairs": [round(ratio, 2) for ratio in sorted(pairs)],
        "largest difference of the outputs": float(np.abs(first - second).max() / np.abs(first).max()),
    }


def pictures() -> dict[str, Any]:
    """The largest difference to diffusers' pictures, in steps of 1/255."""
    import mlx.core as mx
    import tiny_flux2 as f
    import tiny_kit as k
    import tiny_z_image as z
    from mlxengine import InferenceEngine, LoadContext
    from mlxengine.contract.features import Layer, Level
    from mlxengine_diffusion import plugin
    from mlxengine_diffusion.backends._networks import filled
    from safetensors.numpy import load_file

    def pipeline(folder: Path, backend: str) -> Any:
        with InferenceEngine() as engine:
            card = engine.resolve(folder)
            flags = engine.features.view(Layer(Level.LOAD, {"diffusion.backend": backend}))
            context = LoadContext(
                path=folder, configuration=card.configuration, features=flags, device=engine.device
            )
            return plugin.load_model(card, context).model.pipeline

    class Adapter:
        """mflux's Z-Image transformer, called as mlx-vlm's is."""

        def __init__(self, network: Any) -> None:
            self.network = network

        def __call__(self, latents: Any, time: Any, told: Any) -> Any:
            return z_image_call("mflux", self.network, latents, 1 - time.item(), told)

    found = {}
    with tempfile.TemporaryDirectory() as root:
        folder = f.write(Path(root) / "flux2")
        stored = load_file(TESTS / "reference" / "flux2.pictures.safetensors")
        for backend in ("mlx_vlm", "mflux"):
            for name, guidance in f.GUIDANCES.items():
                ours = k.pixels(pipeline(folder, backend), k.job(f, guidance), mx.array(f.noise()))
                found[f"flux2 {name} {backend}"] = int(np.abs(ours - stored[name].astype(int)).max())
        folder = z.write(Path(root) / "z-image")
        stored = load_file(TESTS / "reference" / "z_image.pictures.safetensors")
        theirs = z_image_networks(z.TRANSFORMER)["mflux"]

        def stored_name(path: str) -> str:
            path = path.replace("adaLN_modulation.0", "adaLN_modulation.1") if "final" in path else path
            return path.replace("t_embedder.linear1", "t_embedder.mlp.0").replace(
                "t_embedder.linear2", "t_embedder.mlp.2"
            )

        filled(theirs, "transformer", [folder / "transformer" / "model.safetensors"], stored_name, mx.float32)
        for backend in ("mlx_vlm", "mflux"):
            made = pipeline(folder, "mlx_vlm")
            if backend == "mflux":
                made.parts._built["transformer"] = Adapter(theirs)
            for name, guidance in (("plain", 0.0), ("guided", 4.0)):
                job = k.job(z, guidance, z.NEGATIVE if guidance else None)
                ours = k.pixels(made, job, mx.array(k.noise())[:, :, None])
                found[f"z_image {name} {backend}"] = int(np.abs(ours - stored[name].astype(int)).max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--width", type=int, default=768, help="of the transformers; a multiple of 128")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    options = parser.parse_args()
    from mlxengine.toolkit import blas

    blas.load()
    print(json.dumps(pictures(), indent=1), flush=True)
    for case in (flux2, z_image):
        print(case.__name__, json.dumps(turns(case(options.width, options.side), options.rounds)), flush=True)


if __name__ == "__main__":
    main()
