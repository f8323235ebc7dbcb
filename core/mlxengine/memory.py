"""What is reserved, what is really held, and what had to go: the values of the memory ledger."""

from __future__ import annotations

from attrs import frozen

from .contract.events import Progress


@frozen(kw_only=True)
class ModelMemory:
    """One loaded model's share, in bytes.

    Args:
        id, kind: which model.
        reserved: what the budget is charged with: weights (measured once they are there), caches, workspace.
        predicted: what the plugin's estimate said before loading, for the same.
        weights: what loading really took, ``None`` where nothing measures it.
        running: requests that run on it now.
        waiting: requests whose first step is still to come.
        pinned: it is never evicted.
        inhibitors: names of those who keep it loaded for now.
        idle_seconds: since its last request ended.
        evicted: it is not in memory; its next request loads it again.
        caches: what it keeps for requests to come; dropped first when others need the memory.
        degraded: what it serves less than was asked for, and why.
        shortages: how often memory ran out under its requests since it was loaded.
        kv_used, kv_total: of key-value caches: what the requests that run fill, and what is set aside for
            them, or may come to be at most; ``None`` where its plugin keeps no account.
    """

    id: str
    kind: str
    reserved: int
    predicted: int
    weights: int | None
    running: int
    pinned: bool
    inhibitors: tuple[str, ...]
    idle_seconds: float
    evicted: bool
    caches: int = 0
    degraded: str | None = None
    shortages: int = 0
    waiting: int = 0
    kv_used: int | None = None
    kv_total: int | None = None


@frozen(kw_only=True)
class Eviction:
    """A model that had to go: why, what it should have freed, and what it did free (bytes)."""

    id: str
    reason: str
    expected: int
    freed: int | None

    @property
    def short(self) -> bool:
        """Whether less than nine tenths of what was expected came back."""
        return self.freed is not None and self.freed < 0.9 * self.expected


@frozen(kw_only=True)
class MemoryReport:
    """The ledger beside what the array library says, in bytes.

    Args:
        budget: what all models of this engine may take together.
        reserved: what they are charged with, and what their caches hold.
        others: what other engines of this user have reserved on this machine.
        active, cache, peak: the array library's own figures; ``None`` where no model needs it.
        models: each model's share.
        evictions: what had to go so far, oldest first.
    """

    budget: int | None
    reserved: int
    others: int
    active: int | None
    cache: int | None
    peak: int | None
    models: tuple[ModelMemory, ...]
    evictions: tuple[Eviction, ...]

    @property
    def weights(self) -> int:
        """The measured weights of the models in memory."""
        return sum(item.weights or 0 for item in self.models if not item.evicted)

    @property
    def caches(self) -> int:
        """What the models' caches hold; with `weights`, what ``active`` is between requests."""
        return sum(item.caches for item in self.models)


@frozen(kw_only=True)
class LoadUnderWay:
    """A model that is being loaded, or brought back for a request after an eviction.

    Args:
        id: which model, as it was asked for.
        seconds: since the load began.
        progress: what was heard last: the stage, and how far it is. ``None``: nothing yet.
    """

    id: str
    seconds: float
    progress: Progress | None


__all__ = ["Eviction", "LoadUnderWay", "MemoryReport", "ModelMemory"]
