"""What a rank does: the leader's calls on a decoder of its own, over its part of the network.

Nothing here looks at a clock, at free memory or at chance: each rank is told the same and does the same, in
the same order, or their collectives would not meet. After each call it says a digest of all calls so far and
of the lengths of its caches, which the leader compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine.toolkit.adapter_rows import ByAdapter
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.dtype import upcast_for_cpu
from mlxengine.toolkit.joining import states
from mlxengine.toolkit.loading import warm
from mlxengine.toolkit.prefix import PrefixCache
from mlxengine.toolkit.rows import Drawn, Plan, Row
from mlxengine.toolkit.shapes import Shapes
from mlxengine_llm.parts import EXPERTS, BatchDecoder, Serving, Trial, caches_for, load_network, widen

Ask = Callable[[Sequence[int], bytes], Sequence[int]]
"""Asks the leader for tokens: rows by their numbers, and fp32 logits of shape (rows, vocabulary)."""


class Mirror:
    """A rank's decoder.

    Args:
        settings: what the leader decided for all ranks, see `mlxengine_shard._ranks.Settings`.
        group: of all ranks.
        ask: answered alike on every rank; only the first one's logits are looked at.
    """

    def __init__(self, settings: Mapping[str, Any], group: Any, ask: Ask) -> None:
        self._settings = settings
        self._group = group
        self._ask = ask
        self._network, _ = load_network(Path(settings["path"]))
        upcast_for_cpu(self._network)
        widen(self._network)
        if settings["split"] == "pipeline":
            self._network.model.pipeline(group)
        else:
            self._network.shard(group)
        for _ in warm(self._network):
            pass
        if settings["split"] == "pipeline":
            self._network = _InOrder(self._network)
        adapters = Adapters(self._network, EXPERTS)
        self._adapters = adapters
        self._trial = Trial(self._network, adapters, self._caches, self._served_alone)
        self._shapes = Shapes(settings["shape_seconds"])
        self._room: int | None = None
        each = settings["token_bytes"]
        self._prefixes = (
            PrefixCache(
                settings["prefix_bytes"], room=lambda: self._room, size=lambda _layers, tokens: tokens * each
            )
            if settings["prefix_bytes"]
            else None
        )
        self._digest = hashlib.sha256()
        self._alone: str | None = None
        self._rows: dict[int, _Mirrored] = {}
        self._parked: dict[int, Any] = {}
        self._decoder = self._opened()

    def answer(self, message: Mapping[str, Any], raw: bytes) -> dict[str, Any]:
        """Do what the leader says; what to answer."""
        self._room = message["room"]
        for number in message["gone"]:
            self._parked.pop(number, None)
        said: dict[str, Any] = self.CALLS[message["call"]](self, message)
        prefixes = self._prefixes
        lengths = [*self._decoder.lengths(), [] if prefixes is None else prefixes.lengths()]
        self._digest.update(raw + json.dumps([said, lengths]).encode())
        return {
            **said,
            "spare": self._decoder.spare,
            "kept": 0 if prefixes is None else prefixes.nbytes,
            "digest": self._digest.hexdigest(),
        }

    def _open(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        self._close(_message)
        self._decoder = self._opened()
        return {}

    def _close(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        self._decoder.close()
        self._rows.clear()
        self._parked.clear()
        return {}

    def _insert(self, message: Mapping[str, Any]) -> dict[str, Any]:
        row = _Mirrored(message)
        row.after = self._rows.get(message["after"])
        row.kept = self._parked.pop(message["kept"], None)
        self._rows[row.number] = row
        self._decoder.insert(row)
        return {"row": [row.read, row.cached]}

    def _step(self, message: Mapping[str, Any]) -> dict[str, Any]:
        done = self._decoder.step(Plan(**message["plan"]))
        return {
            "drawn": [_told(item) for item in done.drawn],
            "prompt_tokens": done.prompt_tokens,
            "queued": done.queued,
            "new_shape": done.new_shape,
            "read": {row.number: row.read for row in self._rows.values() if row.read},
            "alone": self._alone,
        }

    def _remove(self, message: Mapping[str, Any]) -> dict[str, Any]:
        rows = [self._rows.pop(number) for number in message["rows"]]
        for row in rows:
            if row.number in message["failed"]:
                row.fail(RuntimeError("it failed"))
        self._decoder.remove(rows)
        return {}

    def _park(self, message: Mapping[str, Any]) -> dict[str, Any]:
        row = self._rows[message["row"]]
        parked = self._decoder.park(row)
        if parked is None:
            return {"parked": None}
        del self._rows[row.number]
        self._parked[row.number] = parked[1]
        return {"parked": _told(parked[0])}

    def _tidy(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        self._decoder.tidy()
        return {}

    def _trim(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self._prefixes is not None:
            self._prefixes.trim(message["most"])
        return {}

    # All that is mirrored: of anything else there is no name.
    CALLS: Mapping[str, Callable[[Mirror, Mapping[str, Any]], dict[str, Any]]] = {
        "open": _open,
        "insert": _insert,
        "step": _step,
        "remove": _remove,
        "park": _park,
        "tidy": _tidy,
        "trim": _trim,
        "close": _close,
    }

    def _opened(self) -> BatchDecoder:
        return BatchDecoder(
            self._network,
            self._adapters,
            ByAdapter(self._prefixes, lambda: PrefixCache(0)),
            self._caches,
            self._shapes,
            self._trial,
            context=self._settings["context"],
            drawing=self._draw,
        )

    def _caches(self) -> list[Any]:
        return caches_for(self._network, Serving())

    def _served_alone(self, why: str) -> None:
        self._alone = why

    def _draw(
        self,
        rows: Sequence[Any],
        _contexts: Sequence[object],
        _inputs: mx.array | None,
        logits: mx.array,
        left: Container[int] = (),
    ) -> tuple[mx.array, list[mx.array | None], list[mx.array]]:
        """The most probable tokens, where that is all that is wanted; else the leader draws."""
        nothing: list[mx.array | None] = [None] * len(rows)
        wanted = [at for at in range(len(rows)) if at not in left]
        if all(rows[at].plain for at in wanted):
            # Sums may be rounded apart on two ranks: all go on with the tokens of the first.
            drawn = mx.argmax(logits, axis=-1) * int(self._group.rank() == 0)
            return mx.distributed.all_sum(drawn, group=self._group), nothing, []
        mx.eval(logits)  # on every rank: its collectives have to be met
        own = b""
        if self._group.rank() == 0:
            own = np.array(logits[mx.array(wanted)].astype(mx.float32)).tobytes()
        tokens = dict(zip(wanted, self._ask([rows[at].number for at in wanted], own), strict=True))
        return mx.array([tokens.get(at, 0) for at in range(len(rows))], dtype=mx.uint32), nothing, []


class _InOrder:
    """A network in stages whose passes are queued one after the other.

    Were several evaluated together, a stage might receive what the one before it sends for another pass: what
    receives does not depend on earlier passes, what sends does.
    """

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        found: mx.array = self._network(tokens, cache=cache)
        mx.async_eval(states(cache))  # type: ignore[no-untyped-call]
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class _Mirrored(Row):
    """A row of the leader's, as far as a decoder looks at it."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message["prompt"], priority=message["priority"])
        self.number: int = message["number"]
        self.plain: bool = message["plain"]  # the most probable token is wanted, and nothing else
        self.tokens = list(message["tokens"])
        self.since = message["since"]
        self.reuse = message["reuse"]


def _told(item: Drawn) -> tuple[int, int]:
    assert isinstance(item.row, _Mirrored)
    return item.row.number, item.token


__all__ = ["Ask", "Mirror"]
