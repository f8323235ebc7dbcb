"""Search, plan, fetch, verify and repair models: the public face of the downloads.

Everything lies in huggingface_hub's own cache, so other libraries find it; every file is hashed before
it may be loaded. ``endpoint``, ``cache_dir`` and ``token`` are huggingface_hub's own defaults
(``HF_ENDPOINT``, ``HF_HUB_CACHE``, the saved token) where they are not given. A model that is ready here is
used at once if the hub does not answer quickly; ``update=True`` waits for its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._hub import fetch as _fetch
from ._hub import resolve as _resolve
from ._hub import store as _store
from ._hub.access import Access as _Access
from ._hub.access import never as _never
from ._hub.cache import RepoCache as _RepoCache
from ._hub.events import Bytes, Corrupt, Failed, HubEvent, Planned, Ready, Resumed, Retry, Verifying
from ._hub.fetch import DownloadPlan, PlannedFile
from ._hub.fetch import make_plan as _make_plan
from ._hub.search import SearchResult
from ._hub.search import search as _search
from ._hub.select import select as _select
from ._hub.select import usual as _usual
from ._hub.store import FileState, FileStatus, LocalModel, LocalRevision, Removal, VerifyReport
from .contract.configuration import ModelCard, ModelConfiguration, ModelRef, Source
from .contract.fit import FitVerdict

if TYPE_CHECKING:
    from .contract.device import Device


def search(
    query: str = "",
    *,
    kind: str | None = None,
    author: str | None = None,
    library: str | None = "mlx",
    max_size: int | None = None,
    fits: bool = False,
    sort: str = "downloads",
    limit: int = 20,
    device: Device | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    cancelled: Callable[[], bool] = _never,
) -> tuple[SearchResult, ...]:
    """Models on the hub whose names match, best first, each with whether it fits on this machine.

    Args:
        kind: a kind that core or an installed plugin lists, and that the hub has a tag for.
        author: only this user's or organization's.
        library: only those with this tag; ``None`` for any.
        max_size: most bytes of weights.
        fits: leave out what does not fit in this machine's memory.
        sort: ``"downloads"``, ``"likes"``, ``"updated"`` or ``"trending"``.
        device: the machine to compare with; this one by default.
        cancelled: as in `fetch`.

    Raises:
        InvalidParameterError: an unknown kind or order.
        HubUnavailableError, HubAuthError, OfflineError: the hub did not answer.
    """
    from ._config import load_settings
    from ._engine.host import Host

    access = _Access.of(endpoint=endpoint, token=token)
    return _search(
        access,
        query,
        kind=kind,
        author=author,
        library=library,
        max_size=max_size,
        fits=fits,
        sort=sort,
        limit=limit,
        device=device,
        kinds=Host.installed(load_settings()).kinds,
        cancelled=cancelled,
    )


def resolve(
    model: str | Path | ModelConfiguration,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    update: bool = False,
    cancelled: Callable[[], bool] = _never,
) -> ModelCard:
    """What a model is: its files at one pinned commit, its JSON documents and its tensors; no weights.

    ``cancelled`` is as in `fetch`.

    Raises:
        ResolutionError: it was not found, is gated, or the hub did not answer.
        CorruptFileError, IncompatibleWeightsError: what it says of itself cannot be true.
    """
    configuration = model if isinstance(model, ModelConfiguration) else ModelConfiguration(id=str(model))
    return _resolve(
        configuration,
        endpoint=endpoint,
        cache_dir=cache_dir,
        token=token,
        offline=offline,
        update=update,
        cancelled=cancelled,
    )


def plan(
    model: str | Path | ModelConfiguration | ModelCard,
    *,
    files: Sequence[str] | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    update: bool = False,
    cancelled: Callable[[], bool] = _never,
) -> DownloadPlan:
    """What `fetch` would do: every file with its size and hash, what is here already, and free disk space.

    Args:
        files: patterns of the files; by default what a model of its kind needs as a rule.
        cancelled: as in `fetch`.

    Raises:
        ResolutionError, CorruptFileError, IncompatibleWeightsError: as `resolve` and `fetch`.
    """
    card = model
    if not isinstance(card, ModelCard):
        card = resolve(
            card,
            endpoint=endpoint,
            cache_dir=cache_dir,
            token=token,
            offline=offline,
            update=update,
            cancelled=cancelled,
        )
    access = _Access.of(endpoint=endpoint, cache_dir=cache_dir, token=token, offline=offline)
    wanted = _select(card, files or _usual(card))
    if card.source is not Source.HUB:
        here = tuple(PlannedFile(path=f.path, size=f.size, hash="", have=f.size) for f in wanted)
        return DownloadPlan(repo=card.id, commit=card.commit, files=here, free=0, reserve=0)
    return _make_plan(_RepoCache(access.cache_dir, card.id), card.commit, wanted)


def fetch(
    model: str | Path | ModelConfiguration | ModelCard,
    *,
    files: Sequence[str] | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    update: bool = False,
    report: Callable[[HubEvent], None] | None = None,
    cancelled: Callable[[], bool] = _never,
    verify: str | None = None,
    pickles: bool = False,
) -> Path:
    """Make a model be here, complete and verified, and return its folder.

    An interrupted download goes on where it stopped; what is in the cache already is hashed and kept.

    Args:
        files: patterns of the files (``fnmatch``); by default what a model needs as a rule.
        report: takes `HubEvent` values, one at a time, from any thread; keep it quick.
        cancelled: asked several times a second, from any thread; when it says ``True``, `CancelledError` is
            raised within a second, whatever the hub is doing.
        verify: ``"deep"`` reads and hashes every file again, also those that are ready.
        pickles: fetch weights that are pickles, too, where ``files`` names them; nothing loads them.

    Raises:
        ResolutionError: it was not found, is gated, or the hub did not answer.
        DownloadError: it did not arrive, the disk is too small, or its content is wrong.
        CancelledError: the caller gave up; the next call goes on.
    """
    card = model
    if not isinstance(card, ModelCard):
        card = resolve(
            card,
            endpoint=endpoint,
            cache_dir=cache_dir,
            token=token,
            offline=offline,
            update=update,
            cancelled=cancelled,
        )
    return _fetch(
        card,
        files or _usual(card),
        endpoint=endpoint,
        cache_dir=cache_dir,
        token=token,
        offline=offline,
        report=report,
        cancelled=cancelled,
        verify=verify,
        pickles=pickles,
    )


def verify(
    model: str | Path,
    *,
    deep: bool = False,
    sample: float = 1.0,
    cache_dir: str | Path | None = None,
    cancelled: Callable[[], bool] = _never,
) -> VerifyReport:
    """Compare what is on this machine with what was verified when it was fetched; makes no request.

    Without ``deep``, sizes and times of change are compared, in milliseconds. Rot that keeps both is
    found only by ``deep``, which reads and hashes the files.

    Args:
        deep: hash the files.
        sample: the share of the files to hash, drawn at random, at least one.

    Raises:
        ModelNotFoundError: nothing of it is on this machine.
    """
    access = _Access.of(cache_dir=cache_dir)
    return _store.verify(access, ModelRef.parse(model), deep=deep, sample=sample, cancelled=cancelled)


def repair(
    model: str,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    report: Callable[[HubEvent], None] | None = None,
    cancelled: Callable[[], bool] = _never,
) -> tuple[str, ...]:
    """Hash every file of a model that was fetched, and fetch again those that are bad or missing.

    Returns:
        the paths of the files that were bad or missing.

    Raises:
        ModelNotFoundError: no download of it was completed here.
        DownloadError: as `fetch`.
    """
    access = _Access.of(endpoint=endpoint, cache_dir=cache_dir, token=token)
    return _store.repair(access, ModelRef.parse(model), report=report, cancelled=cancelled)


def remove(model: str, *, cache_dir: str | Path | None = None, dry_run: bool = False) -> Removal:
    """Remove a model from this machine: all of it, or with ``"org/name@revision"`` that revision alone.

    Content that another revision uses stays. ``dry_run`` only says what would be freed.

    Raises:
        ModelNotFoundError: it is not on this machine.
    """
    return _store.remove(_Access.of(cache_dir=cache_dir), ModelRef.parse(model), dry_run=dry_run)


def cache_folder(*, cache_dir: str | Path | None = None) -> Path:
    """The folder that holds everything; it need not exist yet."""
    return _Access.of(cache_dir=cache_dir).cache_dir


def list_local(*, cache_dir: str | Path | None = None) -> tuple[LocalModel, ...]:
    """Every model in the cache, with its size and whether it is ready; makes no request."""
    return _store.list_local(_Access.of(cache_dir=cache_dir))


__all__ = [
    "Bytes",
    "Corrupt",
    "DownloadPlan",
    "Failed",
    "FileState",
    "FileStatus",
    "FitVerdict",
    "HubEvent",
    "LocalModel",
    "LocalRevision",
    "Planned",
    "PlannedFile",
    "Ready",
    "Removal",
    "Resumed",
    "Retry",
    "SearchResult",
    "VerifyReport",
    "Verifying",
    "fetch",
    "list_local",
    "plan",
    "remove",
    "repair",
    "resolve",
    "search",
    "verify",
]
