"""What the tests of the language plugin share: tiny models, and the hooks driven as a scheduler would."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlxengine import (
    Device,
    Event,
    FileInfo,
    Finished,
    GenerateParams,
    LoadContext,
    Loaded,
    ModelCard,
    ModelConfiguration,
    ModelRef,
    Request,
    RunContext,
    Source,
    TextDelta,
    TextRequest,
    Waiting,
)
from mlxengine.contract.features import FeatureRegistry, Layer, Level
from mlxengine.toolkit import backend
from mlxengine_llm import plugin

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, *, extra: Sequence[str] = (), template: str = TEMPLATE) -> int:
    """Write a tokenizer whose tokens are bytes; how many it has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[2],
        "chat_template": template,
    }
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def write_tiny(
    folder: Path, *, seed: int = 0, extra: Sequence[str] = (), template: str = TEMPLATE, **changes: Any
) -> Path:
    """Write a random model (a llama): hidden 32, 2 layers, 4 heads of which 2 for keys, bytes as tokens."""
    from mlx.utils import tree_map

    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder, extra=extra, template=template)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "bos_token_id": 0,
        **changes,
    }
    folder.joinpath("config.json").write_text(json.dumps(config))
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    network = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(seed)
    network.update(tree_map(lambda value: mx.random.normal(value.shape) * 0.3, network.parameters()))
    network.save_weights(str(folder / "model.safetensors"))
    return folder


ADAPTED = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]


def write_adapter(
    folder: Path, tiny: Path, *, dora: bool = False, seed: int = 3, rank: int = 4, everywhere: bool = False
) -> Any:
    """A random adapter in mlx-lm's format, and mlx-lm's own model with it.

    ``everywhere``: at every layer that mlx-lm adapts where nobody names any.
    """
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    network, _ = load_model(tiny)
    parameters: dict[str, Any] = {"rank": rank, "scale": 3.0, "dropout": 0.0}
    if not everywhere:
        parameters["keys"] = ADAPTED
    layers = len(network.layers)
    linear_to_lora_layers(network, layers, parameters, use_dora=dora)
    mx.random.seed(seed)
    own = {
        name: mx.random.normal(value.shape) * 0.3 + (name.endswith(".m") * value)
        for name, value in tree_flatten(network.parameters())
        if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), own)
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": layers,
        "lora_parameters": parameters,
    }
    folder.joinpath("adapter_config.json").write_text(json.dumps(config))
    network.load_weights(list(own.items()), strict=False)
    network.eval()
    return network


def card_of(folder: Path, **settings: Any) -> ModelCard:
    """The card of a local folder, as the engine would make it."""
    files = tuple(
        FileInfo(path=str(item.relative_to(folder)), size=item.stat().st_size)
        for item in sorted(folder.rglob("*"))
        if item.is_file()
    )
    return ModelCard(
        ref=ModelRef(path=folder),
        configuration=ModelConfiguration(id=str(folder), **settings),
        source=Source.FOLDER,
        commit="0" * 40,
        path=folder,
        files=files,
        documents={item.name: json.loads(item.read_text()) for item in folder.glob("*.json")},
    )


class Plugin:
    """The plugin's hooks under one mlx stream."""

    def __init__(self) -> None:
        self.registry = FeatureRegistry()
        for feature in plugin.list_features():
            self.registry.add(feature, "llm")
        self.backend = backend.MLXBackend()
        self._loaded: list[Loaded] = []
        self._flags: dict[int, dict[str, object]] = {}

    def features(self, **values: object) -> Any:
        return self.registry.view(Layer(Level.CALL, {f"llm.{name}": v for name, v in values.items()}))

    def load(self, folder: Path, *, flags: dict[str, object] | None = None, **settings: Any) -> Any:
        """Claim, load and warm; returns the model."""
        card = card_of(folder, **settings)
        claim = plugin.claim_model(card)
        assert claim is not None
        if claim.problem is not None:
            raise claim.problem
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=self.features(**(flags or {})),
            device=Device.detect(),
        )
        with self.backend.stream():
            loaded = plugin.load_model(card, context)
            assert loaded is not None
            for _ in loaded.warm:
                pass
        self._loaded.append(loaded)
        self._flags[id(loaded.model)] = dict(flags or {})
        return loaded.model

    def start(self, model: Any, request: Request, *, budget_ms: float = 100.0, **flags: object) -> Any:
        """The iterator of a request."""
        with self.backend.stream():
            found = plugin.generate(
                model,
                request,
                RunContext(
                    features=self.features(**{**self._flags.get(id(model), {}), **flags}), budget_ms=budget_ms
                ),
            )
        assert found is not None
        return found

    def run(
        self, streams: Sequence[Iterator[Event | None]], *, later: dict[int, list[Any]] | None = None
    ) -> list[list[Any]]:
        """Step the iterators in turn until all have ended; an exception becomes the last item.

        ``later``: streams (or functions that start them) that join at a given round.
        """
        active = list(streams)
        found: list[list[Any]] = [[] for _ in active]
        live = set(range(len(active)))
        turn = 0
        with self.backend.stream():
            while live or (later and max(later) >= turn):
                for make in (later or {}).get(turn, ()):
                    active.append(make())
                    found.append([])
                    live.add(len(active) - 1)
                turn += 1
                assert turn < 20_000, "the streams do not end"
                for i in sorted(live):
                    try:
                        event = next(active[i])
                    except StopIteration:
                        live.discard(i)
                    except Exception as error:
                        found[i].append(error)
                        live.discard(i)
                    else:
                        if isinstance(event, Waiting):
                            wait([event.until])
                        elif event is not None:
                            found[i].append(event)
        return found

    def text(self, model: Any, prompt: str, **params: Any) -> str:
        """The whole answer to a raw prompt, served alone."""
        (events,) = self.run([self.start(model, raw(prompt, **params))])
        return text_of(events)

    def answer(self, model: Any, request: Request, **flags: object) -> str:
        """The whole answer to a request that is served alone; what it fails with is raised."""
        (events,) = self.run([self.start(model, request, **flags)])
        return text_of(events)

    def close(self) -> None:
        with self.backend.stream():
            for loaded in self._loaded:
                if loaded.close is not None:
                    loaded.close()
        self._loaded.clear()


def raw(prompt: str, **params: Any) -> TextRequest:
    return TextRequest(prompt=prompt, params=GenerateParams(**params))


def text_of(events: Sequence[Any]) -> str:
    for event in events:
        if isinstance(event, Exception):
            raise event
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def tokens_of(events: Sequence[Any]) -> list[int]:
    return [token for event in events if isinstance(event, TextDelta) for token in event.token_ids]


def passes(model: Any, plugin: Plugin) -> list[tuple[int, int]]:
    """The rows and positions of each forward pass that ends well, noted as the passes happen."""
    found: list[tuple[int, int]] = []
    whole = model.network

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

        def __call__(self, tokens: Any, **more: Any) -> Any:
            made = whole(tokens, **more)
            found.append(tokens.shape)
            return made

    with plugin.backend.stream():
        model.batch._discard()
    model.network = Counting()
    return found


def scores_of(events: Sequence[Any]) -> list[float]:
    """The log-probabilities of the tokens and of their alternatives."""
    found = [item for event in events if isinstance(event, TextDelta) for item in event.logprobs]
    return [number for item in found for number in (item.logprob, *(top.logprob for top in item.top))]
