"""Training adapters: mlx-lm's trainer, with checkpoints from which a run goes on as if it had not stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen
from mlxengine import Progress
from mlxengine.errors import ConfigurationError, CorruptFileError, InvalidParameterError

from ._curve import Curve, Point, replace
from ._examples import dataset

CHECKPOINT = "checkpoint.safetensors"
_NEVER = 1 << 60


@frozen(kw_only=True)
class TrainParams:
    """How an adapter is trained.

    Args:
        iterations: batches to learn from, in all.
        batch_size: examples in each.
        learning_rate: of Adam.
        rank, scale, dropout: of the adapter; its output is multiplied by ``scale``.
        dora: train DoRA instead of LoRA.
        layers: adapt the last so many blocks; 0 is all.
        max_tokens: longer examples are cut.
        mask_prompt: learn from the answers only (chats and pairs of prompt and completion).
        save_every: iterations between two checkpoints.
        valid_batches: batches of ``valid.jsonl`` that are measured at each checkpoint.
        seed: of the adapter's first weights and of the order of the examples.

    Raises:
        InvalidParameterError: a number is out of its range.
    """

    iterations: int = 200
    batch_size: int = 4
    learning_rate: float = 1e-4
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    dora: bool = False
    layers: int = 0
    max_tokens: int = 2048
    mask_prompt: bool = False
    save_every: int = 50
    valid_batches: int = 8
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        for name in ("iterations", "batch_size", "rank", "max_tokens", "save_every", "valid_batches"):
            if getattr(self, name) < 1:
                raise InvalidParameterError(f"{name}={getattr(self, name)!r} must be at least 1.")
        if not 0 <= self.dropout < 1 or not self.learning_rate > 0 or self.layers < 0 or self.seed < 0:
            raise InvalidParameterError("dropout, learning_rate, layers or seed is out of its range.")


@frozen(kw_only=True)
class Trained:
    """What a run came to: its folder, the iterations that are done, and the loss over them."""

    path: Path
    iterations: int
    complete: bool
    losses: tuple[Point, ...] = field(repr=False)


def train(
    source: Path,
    data: Path,
    target: Path,
    params: TrainParams | None = None,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _progress: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train an adapter; ``target`` is one that can be loaded from the first checkpoint on.

    A run that is killed goes on from its last checkpoint with ``resume``, over the same batches in the same
    order, and comes to what it would have come to. ``loss.csv`` and ``loss.png`` grow with it.

    Args:
        source: the model's folder.
        data: a folder with ``train.jsonl`` and perhaps ``valid.jsonl``, one example a line:
            ``{"messages": …}``, ``{"prompt": …, "completion": …}`` or ``{"text": …}``.
        target: a new folder; with ``resume`` that of the run.
        params: how; with ``resume`` only ``iterations`` may have changed.
        report: told how far training is.
        stopped: asked before each iteration; a run that is stopped writes a checkpoint and returns.

    Raises:
        ConfigurationError: the target exists, there is nothing (or another run) to go on with, or Pillow is
            not installed.
        InvalidParameterError: the data or a parameter cannot be used.
        LoadError, CorruptFileError: the model or the checkpoint cannot be read.
    """
    params = params or TrainParams()
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError(
            "The loss curve is drawn with Pillow, which is not installed.",
            hint='pip install "mlxengine-llm[train]"',
        )
    if resume and not target.joinpath(CHECKPOINT).exists():
        raise ConfigurationError(f"{target} has no checkpoint.", hint="Train without resume first.")
    if not resume and target.exists():
        raise ConfigurationError(f"{target} exists already.", hint="Name a new folder, or resume.")
    run = _Run(source, data, target, params)
    if resume:
        run.restore()
    run.go(report, stopped)
    return Trained(
        path=target,
        iterations=run.done,
        complete=run.done >= params.iterations,
        losses=tuple(run.curve.points),
    )


class _Run:
    """A training run: the model with the adapter's layers, the optimizer, and what is done."""

    def __init__(self, source: Path, data: Path, target: Path, params: TrainParams) -> None:
        import mlx.core as mx
        from mlx.optimizers import Adam
        from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu

        from .convert import load_network

        self.params = params
        self.target = target
        self.done = 0
        self.curve = Curve()
        self.network, _ = load_network(source)
        from mlx_lm.tokenizer_utils import load as load_tokenizer

        unpack_where_faster(self.network, 1 << 40)
        upcast_for_cpu(self.network)
        blocks = len(self.network.layers)
        if params.layers > blocks:
            raise InvalidParameterError(f"The model has {blocks} layers, {params.layers} were to be adapted.")
        lora = {"rank": params.rank, "scale": params.scale, "dropout": params.dropout}
        mx.random.seed(params.seed)
        self._adapt(params.layers or blocks, lora)
        self.config = {
            "fine_tune_type": "dora" if params.dora else "lora",
            "num_layers": params.layers or blocks,
            "lora_parameters": lora,
            "model": str(source),
        }
        self.optimizer = Adam(learning_rate=params.learning_rate)
        self.optimizer.init(self.network.trainable_parameters())
        tokenizer = load_tokenizer(source, {"trust_remote_code": False})
        read = partial(dataset, tokenizer=tokenizer, mask_prompt=params.mask_prompt)
        self.train_set = read(data / "train.jsonl", least=params.batch_size)
        valid = data / "valid.jsonl"
        self.valid_set = read(valid, least=1) if valid.exists() else None

    def _adapt(self, blocks: int, lora: dict[str, Any]) -> None:
        """Give the last so many blocks adapters to be trained.

        Raises:
            ConfigurationError: mlx-lm cannot, or gives them a form that nobody loads.
        """
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import linear_to_lora_layers

        dora = self.params.dora
        try:
            self.network.freeze()
            linear_to_lora_layers(self.network, blocks, dict(lora), use_dora=dora)
        except (ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"mlx-lm cannot train {'DoRA' if dora else 'LoRA'} on this model: {error}.",
                hint="Train LoRA." if dora else "Choose another model.",
            ) from error
        found: Any = tree_flatten(self.network.trainable_parameters())
        leaves = {name.rpartition(".")[2] for name, _ in found}
        if not leaves <= {"lora_a", "lora_b", "m"}:
            raise ConfigurationError(
                "mlx-lm adapts some layers of this model in a form of their own, which cannot be loaded.",
                hint="Choose another model.",
            )

    def go(self, report: Callable[[Progress], None], stopped: Callable[[], bool]) -> None:
        total = self.params.iterations
        report(Progress(stage="train", done=self.done, total=total, unit="iterations"))
        if not self.done:
            self.curve.add(Point(iteration=0, valid=self._valid()))
        while self.done < total and not stopped():
            wanted = min(self.params.save_every - self.done % self.params.save_every, total - self.done)
            loss = self._segment(wanted, report, stopped)
            self.curve.add(Point(iteration=self.done, train=loss, valid=self._valid()))
            self.save()

    def _segment(
        self, wanted: int, report: Callable[[Progress], None], stopped: Callable[[], bool]
    ) -> float | None:
        """Train until the next checkpoint or until stopped; the mean loss."""
        import mlx.core as mx
        from mlx_lm.tuner.trainer import TrainingArgs, default_loss, iterate_batches
        from mlx_lm.tuner.trainer import train as mlx_lm_train

        total = self.params.iterations
        losses: list[Any] = []
        begin, given = self.done, 0
        border = begin - begin % self.params.save_every
        seed = (self.params.seed + border) % 2**32
        mx.random.seed(seed)  # of dropout

        def batches(**settings: Any) -> Iterator[Any]:
            # their order depends on the seed and on the checkpoint before, not on who goes on from it
            nonlocal given
            for batch in itertools.islice(iterate_batches(**settings, seed=seed), begin - border, None):
                if stopped():
                    return
                given += 1
                yield batch

        class Report:
            def on_train_loss_report(self, found: dict[str, Any]) -> None:
                losses.append(found["train_loss"])
                report(
                    Progress(stage="train", done=begin + found["iteration"], total=total, unit="iterations")
                )

        scratch = self.target.with_name(f".{self.target.name}-segment.safetensors")
        arguments = TrainingArgs(
            batch_size=self.params.batch_size,
            iters=wanted,
            steps_per_report=1,
            steps_per_save=_NEVER,
            max_seq_length=self.params.max_tokens,
            adapter_file=str(scratch),
        )
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the trainer draws a display of its own
                mlx_lm_train(
                    self.network,
                    self.optimizer,
                    self.train_set,
                    args=arguments,
                    loss=default_loss,
                    iterate_batches=batches,
                    training_callback=Report(),
                )
        finally:
            scratch.unlink(missing_ok=True)
        self.done = begin + given
        if losses and not all(map(math.isfinite, losses)):
            raise InvalidParameterError(
                f"The loss is not a number any more before iteration {self.done}.",
                hint="Train again with a lower learning_rate.",
            )
        return sum(losses) / len(losses) if losses else None

    def _valid(self) -> float | None:
        from mlx_lm.tuner.trainer import evaluate, iterate_batches

        if self.valid_set is None:
            return None
        found: Any = evaluate(
            self.network,
            self.valid_set,
            min(self.params.batch_size, len(self.valid_set)),
            self.params.valid_batches,
            self.params.max_tokens,
            iterate_batches=partial(iterate_batches, seed=self.params.seed % 2**32),
        )
        return float(found)

    def save(self) -> None:
        """Write a checkpoint: each file is the old one or the new one, never half of it."""
        import mlx.core as mx
        from mlx.utils import tree_flatten

        self.target.mkdir(parents=True, exist_ok=True)
        adapter: Any = dict(tree_flatten(self.network.trainable_parameters()))
        state: Any = dict(tree_flatten(self.optimizer.state))
        whole = {f"adapter.{name}": value for name, value in adapter.items()}
        whole |= {f"optimizer.{name}": value for name, value in state.items()}
        about = {
            "iteration": str(self.done),
            "params": json.dumps(asdict(self.params)),
            "losses": json.dumps([asdict(point) for point in self.curve.points]),
        }

        def tensors(values: Any, metadata: dict[str, str] | None) -> Callable[[Path], None]:
            return lambda file: mx.save_safetensors(str(file), values, metadata)

        text = json.dumps(self.config, indent=1) + "\n"
        replace(self.target / "adapter_config.json", lambda file: file.write_text(text))
        replace(self.target / "adapters.safetensors", tensors(adapter, None))
        replace(self.target / CHECKPOINT, tensors(whole, about))
        self.curve.write(self.target)

    def restore(self) -> None:
        """Go on from the checkpoint."""
        import mlx.core as mx
        from mlx.utils import tree_unflatten

        file = self.target / CHECKPOINT
        try:
            loaded: Any = mx.load(str(file), return_metadata=True)
            values, about = loaded
            before = json.loads(about["params"])
            self.done = int(about["iteration"])
            self.curve = Curve([Point(**point) for point in json.loads(about["losses"])])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{file} cannot be read: {error}.", hint="Train anew.") from error
        now = asdict(self.params)
        changed = sorted(key for key in now if key != "iterations" and now[key] != before.get(key))
        if changed:
            raise ConfigurationError(
                f"The run was begun with other parameters: {', '.join(changed)}.",
                hint="Resume with the same ones; only iterations may change.",
            )
        parts: dict[str, list[tuple[str, Any]]] = {"adapter": [], "optimizer": []}
        for name, value in values.items():
            kind, _, rest = name.partition(".")
            parts[kind].append((rest, value))
        self.network.load_weights(parts["adapter"], strict=False)
        self.optimizer.state = tree_unflatten(parts["optimizer"])


__all__ = ["TrainParams", "Trained", "train"]
