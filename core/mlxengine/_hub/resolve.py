"""From a reference to a `ModelCard`: what a model is, found out without fetching its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from attrs import evolve

from ..contract.configuration import FileInfo, ModelCard, ModelConfiguration, ModelRef, Source
from ..errors import (
    ConfigurationError,
    CorruptFileError,
    DownloadError,
    HubUnavailableError,
    InvalidModelRefError,
    MLXEngineError,
    ModelNotFoundError,
    OfflineError,
    RateLimitedError,
    ResolutionError,
)
from ..readonly import freeze
from .access import BRIEF, QUICK, Access, Cancelled, never
from .api import get_json
from .cache import Listing, RepoCache
from .download import READ_ONLY, Job, typed_disk_errors
from .inspection import inspect
from .local import local_card
from .names import check_path, is_commit, is_hash, problem_with, text, texts
from .secrets import redact

log = logging.getLogger("mlxengine.hub")
_MOST_FILES = 100_000
_MOST_BYTES = 2**53


def resolve(
    configuration: ModelConfiguration,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    cancelled: Cancelled = never,
    update: bool = False,
) -> ModelCard:
    """Find out what a model is: its files at one pinned commit, its JSON documents and its tensors.

    JSON files of at most 1 MiB are fetched (into the cache, verified), and the headers of safetensors
    and GGUF files are read; the weights are not. A model that is ready on this machine is asked about
    only briefly: if the hub does not answer at once, what is here is used. ``offline``, or a commit id
    that is ready, makes no request.

    Args:
        endpoint: another hub than ``HF_ENDPOINT``'s; a mirror's address.
        cache_dir: another cache than huggingface_hub's own.
        token: for gated and private repositories; sent to the endpoint alone.
        offline: make no request.
        update: wait for the hub's answer although the model is ready: it may have become newer.

    Raises:
        ModelNotFoundError: no such repository, revision, folder or file.
        GatedModelError: its terms must be accepted; the hint has the address.
        HubAuthError: the token was refused.
        HubUnavailableError: the hub cannot be reached, and the model is not complete here.
        OfflineError: the network is off, and the model is not complete here.
        IncompatibleWeightsError: its configuration is not JSON, is too large or nested too deep, or it
            lacks a shard that its index names.
        CorruptFileError: a header lies about its file, or the hub lists a name that is refused.
        InvalidModelRefError: the reference is ``auto:…``, which is the registry's to choose.
    """
    ref = configuration.ref
    if ref.auto is not None:
        raise InvalidModelRefError(
            f"{ref} names a kind, not a model.", hint="Let the registry choose a model of this kind first."
        )
    if ref.path is not None:
        return local_card(ref, configuration)
    access = Access.of(endpoint=endpoint, cache_dir=cache_dir, token=token, offline=offline)
    return hub_card(access, ref, configuration, cancelled, update=update)


def hub_card(
    access: Access,
    ref: ModelRef,
    configuration: ModelConfiguration,
    cancelled: Cancelled = never,
    *,
    update: bool = False,
) -> ModelCard:
    """The card of a repository on the hub; see `resolve`."""
    assert ref.repo_id is not None
    cache = RepoCache(access.cache_dir, ref.repo_id)
    revision = ref.revision or "main"
    commit = cache.commit_of(revision)
    kept = cache.listing(commit) if commit is not None else None
    ready = kept is not None and is_ready(cache, kept)
    if access.offline or (ready and is_commit(revision)):
        return _card_from_cache(access, cache, ref, configuration, cancelled)
    here = partial(_card_from_cache, access, cache, ref, configuration, cancelled)
    try:
        listing = ask(access, ref.repo_id, revision, quick=ready and not update, cancelled=cancelled)
    except (ResolutionError, DownloadError, ConfigurationError) as error:
        passing = isinstance(error, HubUnavailableError | RateLimitedError)
        if not ready and not (passing and is_complete(cache, commit)):
            raise
        return _as_it_is(here, ref, commit, error)
    if not ready or update or listing.commit == commit:
        return _card_of(access, cache, ref, configuration, listing, cancelled)
    try:
        return _card_of(evolve(access, policy=BRIEF), cache, ref, configuration, listing, cancelled)
    except (ResolutionError, DownloadError) as error:
        return _as_it_is(here, ref, commit, error)


def _as_it_is(
    here: Callable[[], ModelCard], ref: ModelRef, commit: str | None, error: MLXEngineError
) -> ModelCard:
    log.warning("%s Using %s as it is here (%s).", error.message, ref.repo_id, str(commit)[:8])
    return here()


def _card_of(
    access: Access,
    cache: RepoCache,
    ref: ModelRef,
    configuration: ModelConfiguration,
    listing: Listing,
    cancelled: Cancelled,
) -> ModelCard:
    """The card of a listing that the hub has just sent; it is kept."""
    try:
        cache.keep_listing(listing)
    except OSError as error:
        if error.errno not in READ_ONLY:
            with typed_disk_errors(access.cache_dir):
                raise
        log.info("%s is read-only: the listing of %s is not kept", access.cache_dir, ref.repo_id)
    return _card(access, cache, ref, configuration, listing, cancelled)


def is_ready(cache: RepoCache, listing: Listing) -> bool:
    """Whether a download of this commit was completed, and nothing has changed since."""
    marked = cache.marker(listing.commit)
    files = [file for file in listing.files if file.path in marked]
    return bool(files) and not cache.unready(listing.commit, files)


def is_complete(cache: RepoCache, commit: str | None) -> bool:
    """Whether another program (or an earlier, unmarked download) left every file that matters here."""
    listing = None if commit is None else cache.listing(commit) or stock_listing(cache, commit)
    return listing is not None and all(
        cache.blob(file).exists()
        for file in listing.files
        if file.hash is not None and file.suffix in (".json", ".safetensors", ".gguf")
    )


def ask(
    access: Access, repo: str, revision: str, *, quick: bool = False, cancelled: Cancelled = never
) -> Listing:
    """Ask the hub what a revision holds: one request, one pinned commit.

    Raises:
        ResolutionError: it does not exist, may not be seen, or the hub does not answer.
        CorruptFileError: the answer names files that are refused, or makes no sense.
    """
    path = f"/api/models/{repo}/revision/{quote(revision, safe='')}"
    policy = QUICK if quick else access.policy
    found = get_json(access, path, repo=repo, params="?blobs=true", policy=policy, cancelled=cancelled)
    if not isinstance(found, dict) or not is_commit(found.get("sha")):
        raise HubUnavailableError(
            f"{redact(access.endpoint)} did not say which commit of {repo} it describes.",
            hint="Check the endpoint.",
            recoverable=False,
        )
    siblings = found.get("siblings") or []
    if not isinstance(siblings, list) or len(siblings) > _MOST_FILES:
        raise CorruptFileError(f"The listing of {repo} cannot be used.", recoverable=False)
    files = tuple(_file(item, repo) for item in siblings)
    paths = {file.path for file in files}
    if len(paths) != len(files):
        raise CorruptFileError(f"The listing of {repo} names a file twice.", recoverable=False)
    for path in paths:
        if both := paths.intersection(map(str, PurePosixPath(path).parents)):
            raise CorruptFileError(
                f"The listing of {repo} names {both.pop()!r} as a file and as a folder.", recoverable=False
            )
    card = found.get("cardData")
    tags = texts(found.get("tags"))
    license_tag = next((tag[8:] for tag in tags if tag.startswith("license:")), None)
    return Listing(
        repo=repo,
        commit=found["sha"],
        files=files,
        license=text(card.get("license")) if isinstance(card, Mapping) else license_tag,
        tags=tags,
        pipeline_tag=text(found.get("pipeline_tag")),
        library_name=text(found.get("library_name")),
    )


def _file(item: Any, repo: str) -> FileInfo:
    path = check_path(item.get("rfilename") if isinstance(item, dict) else None, repo)
    lfs = item.get("lfs")
    if isinstance(lfs, dict):
        size, content = lfs.get("size", item.get("size")), f"sha256:{lfs.get('sha256')}"
    else:
        size, content = item.get("size"), f"git:{item.get('blobId')}"
    if size is None and not is_hash(content):
        return FileInfo(path=path, size=0)
    sound = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _MOST_BYTES
    if not sound or not is_hash(content):
        raise CorruptFileError(
            f"The listing of {repo} gives {path} the size {size!r} and the content {content[:80]!r}.",
            hint="Check the endpoint.",
            recoverable=False,
        )
    return FileInfo(path=path, size=size, hash=content)


def _card_from_cache(
    access: Access, cache: RepoCache, ref: ModelRef, configuration: ModelConfiguration, cancelled: Cancelled
) -> ModelCard:
    revision = ref.revision or "main"
    commit = cache.commit_of(revision)
    listing = None if commit is None else cache.listing(commit) or stock_listing(cache, commit)
    if listing is None:
        raise OfflineError(
            f"{ref} is not in {cache.cache_dir}, and the network is off: all of its files are missing.",
            hint="Fetch it once with a network.",
        )
    return _card(evolve(access, offline=True), cache, ref, configuration, listing, cancelled)


def stock_listing(cache: RepoCache, commit: str) -> Listing | None:
    """What a commit holds that huggingface_hub itself fetched: by its own listing and its blobs' names."""
    snapshot = cache.snapshot(commit)
    found: dict[str, FileInfo] = {}
    for pointer in sorted(snapshot.rglob("*")) if snapshot.is_dir() else ():
        name = pointer.readlink().name if pointer.is_symlink() else ""
        content = f"{'sha256' if len(name) == 64 else 'git'}:{name}"
        path = pointer.relative_to(snapshot).as_posix()
        if is_hash(content) and pointer.is_file() and problem_with(path) is None:
            found[path] = FileInfo(path=path, size=pointer.stat().st_size, hash=content)
    if not found:
        return None
    for path, size, blob in _stock_tree(cache, commit):
        # only what is absent: there the hash merely says that no such blob is here
        found.setdefault(path, FileInfo(path=path, size=size, hash=f"git:{blob}"))
    return Listing(repo=cache.repo, commit=commit, files=tuple(found.values()))


def _stock_tree(cache: RepoCache, commit: str) -> list[tuple[str, int, str]]:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(cache.repo, revision=commit, cache_dir=cache.cache_dir)
    except CachedRepoTreeNotFoundError:
        return []
    return [
        (entry.path, entry.size, entry.blob_id)
        for entry in tree
        if problem_with(entry.path) is None and is_hash(f"git:{entry.blob_id}")
    ]


def _card(
    access: Access,
    cache: RepoCache,
    ref: ModelRef,
    configuration: ModelConfiguration,
    listing: Listing,
    cancelled: Cancelled,
) -> ModelCard:
    if not listing.files:
        raise ModelNotFoundError(f"{ref} has no files.", hint="Check the revision.")
    job = Job(access=access, cache=cache, commit=listing.commit, cancelled=cancelled)
    found = inspect(job, listing)
    return ModelCard(
        ref=ref,
        configuration=configuration,
        source=Source.HUB,
        commit=listing.commit,
        files=listing.files,
        documents=freeze(found.documents),
        tensors=found.tensors,
        gguf=freeze(found.gguf),
        license=listing.license,
        tags=listing.tags,
        pipeline_tag=listing.pipeline_tag,
        library_name=listing.library_name,
    )
