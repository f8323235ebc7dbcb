"""The contract between the engine and a plugin: the hooks, and the values that they exchange.

A plugin is a module or object, registered under the entry-point group ``mlxengine``, whose functions
are marked with ``@hookimpl``. The entry point's name is the plugin's name. Nothing heavy may be
imported when the plugin is imported: model libraries belong inside ``load_model``.

Within a major version the specs only grow; a breaking change gets the group ``mlxengine.v2``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import field, frozen
from attrs.validators import instance_of, optional

from ._convert import names, texts
from .features import Feature, Features

if TYPE_CHECKING:
    from .checks import Check, SelfTestContext
    from .configuration import ModelCard, ModelConfiguration
    from .device import Device
    from .events import Event, Progress
    from .kinds import Kind, Option
    from .requests import Request

ENTRY_POINT_GROUP = "mlxengine"
PROJECT = "mlxengine"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Fit(enum.IntEnum):
    """How well a plugin serves a model; the highest claim wins, and a tie at the top is an error.

    ``CHOSEN`` is for a plugin that another way of serving has to be asked for by a flag of its own, where the
    card's configuration sets that flag.
    """

    FALLBACK = 1
    PARTIAL = 2
    NATIVE = 3
    CHOSEN = 4


@frozen(kw_only=True)
class Workload:
    """What a memory estimate is for; a kind subclasses it with what its models' memory depends on.

    Args:
        batch: requests at once.
        backend: where it runs (`Device.backend`); on ``"cpu"`` half-precision weights are kept in fp32.
        free_memory: bytes that are free there, for what is unpacked only where it fits.
    """

    batch: int = 1
    backend: str | None = None
    free_memory: int | None = None

    @classmethod
    def options(cls) -> Sequence[Option]:
        """What ``mlxengine fit`` takes for it: one option for each field that a person may set."""
        from .kinds import Option, positive

        return (Option(flag="--batch", type=positive, default=1, metavar="N", help="requests at once"),)


@frozen(kw_only=True)
class MemoryEstimate:
    """Bytes that a model needs: its weights, the caches of its requests, and working space.

    Without ``cache_known`` the caches are a guess, and are measured when the model is loaded.
    """

    weights: int
    cache: int = 0
    workspace: int = 0
    cache_known: bool = True

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.cache + self.workspace


@frozen(kw_only=True)
class Claim:
    """A plugin's offer to serve a model.

    Args:
        kind: the name of a `Kind` that somebody lists, or of one that nobody does: such models have the
            plain handle.
        fit: how well.
        files: glob patterns (``fnmatch`` on repository paths) of the files that loading needs; nothing
            else is downloaded.
        capabilities: facts about the model that are known before it is loaded, for example ``"vision"``.
        estimate: bytes needed for a workload of the kind (`Kind.workload`); pure.
        uses_mlx: whether loading and running it needs mlx.
        problem: an error that loading would end with for sure, found from the card alone (for example
            `UnsupportedArchitectureError`); it is raised before any weight is fetched. One of ours.
        reason: a few words on why, for ``explain``.
        honours: names of other plugins' feature flags that this one heeds for the model. A caller who sets
            any other flag of theirs for the model, or for a request of it, is refused.
    """

    kind: str
    fit: Fit
    files: tuple[str, ...] = field(default=("*.json", "*.safetensors"), converter=texts)
    capabilities: frozenset[str] = field(default=frozenset(), converter=names)
    estimate: Callable[[Any], MemoryEstimate] | None = None
    uses_mlx: bool = True
    problem: Exception | None = None
    reason: str = ""
    honours: frozenset[str] = field(default=frozenset(), converter=names)


@frozen(kw_only=True)
class ModelState:
    """What a loaded model says of itself while it serves.

    Args:
        caches: bytes that it keeps beside its weights for requests to come (prompts, encoded pictures).
        requests: bytes that the requests that run take, or are about to, beyond the estimate's caches.
        degraded: why it serves less than it was loaded for at the moment, for people.
        shortages: how often memory ran out under it so far.
        rows: requests that have a place in its batch; ``None`` where there is none.
        kv_used, kv_total: bytes of key-value caches that requests fill now, and that are set aside for them,
            or may come to be at most; ``None`` where nobody keeps account.
    """

    caches: int = 0
    requests: int = 0
    degraded: str | None = None
    shortages: int = 0
    rows: int | None = None
    kv_used: int | None = None
    kv_total: int | None = None


@frozen(kw_only=True)
class Loaded:
    """A loaded model.

    Args:
        model: whatever the plugin's ``generate`` wants to be given.
        warm: an iterator that evaluates the weights a slice at a time (at most about 50 ms each), run
            on the scheduler's thread between the steps of other models.
        close: frees the model; called once, on the scheduler's thread.
        capabilities: facts that only loading could tell, added to the claim's.
        info: what ``handle.info`` shows, for example the tokenizer's size or the library used. The plugin may
            change it later.
        missing: names of features that this model turns out not to have, each with the reason, for people;
            ``handle.explain`` shows it. The plugin may add to it later.
        cache: bytes that the caches take for which the estimate reckoned ``MemoryEstimate.cache``, where the
            plugin measured them.
        state: what the model holds and how it does, asked at any time on any thread; quick.
        trim: lets go of caches until they hold at most so many bytes; called on the scheduler's thread.
        setup: the requests that bring a model that was just loaded to where earlier requests brought this
            one (adapters, voices). Asked before it is evicted, on the scheduler's thread; they run, in
            order, when its next request has loaded it again.
        warm_up: for ``load(…, warm_up=True)``: an iterator that runs what serving will run for the first time
            (sizes that the device compiles for), on state that is thrown away; a short step at a time on the
            scheduler's thread, between those of other models and of requests to this one. It may be asked
            for again, and closed early. ``None``: there is nothing that the first user would wait for.
    """

    model: object
    warm: Iterable[None] = ()
    close: Callable[[], None] | None = None
    capabilities: frozenset[str] = field(default=frozenset(), converter=names)
    info: Mapping[str, Any] = field(factory=dict)
    missing: Mapping[str, str] = field(factory=dict)
    cache: int | None = None
    state: Callable[[], ModelState] = field(default=ModelState)
    trim: Callable[[int], None] = field(default=lambda _most: None)
    setup: Callable[[], Sequence[Request]] = field(default=tuple)
    warm_up: Callable[[], Iterable[None]] | None = None


@frozen(kw_only=True)
class LoadContext:
    """What ``load_model`` may use.

    Args:
        path: the folder that holds the model's files, complete and checked; or the file of weights.
        configuration: what the caller (or the registry) configured.
        features: the flags in force.
        device: what this machine is.
        report: tells the caller how far loading is; cheap.
        cancelled: whether the caller has given up; loading then raises `CancelledError`.
        fetch: makes another repository or folder (an adapter, a draft model) available locally and
            returns its path: ``fetch(ref, patterns)``. It shows its progress to the caller, and raises
            `CancelledError` when the caller gives up. ``None`` where nothing can be fetched.
        cache_room: bytes by which the model's caches and requests may grow at the moment, negative where
            they hold too much; asked before something is kept, on the scheduler's thread. ``None`` where
            nobody keeps account.
        reserved: bytes that were reserved for the caches of its requests.
    """

    path: Path
    configuration: ModelConfiguration
    features: Features
    device: Device
    report: Callable[[Progress], None] = field(default=lambda _progress: None)
    cancelled: Callable[[], bool] = field(default=lambda: False)
    fetch: Callable[[str, Sequence[str]], Path] | None = None
    cache_room: Callable[[], int | None] = field(default=lambda: None)
    reserved: int = 0


@frozen(kw_only=True)
class RunContext:
    """What ``generate`` may use.

    Args:
        features: the flags in force for this call.
        budget_ms: how long one step of the iterator should take at most; a guide, for what can be cut.
        cancelled: whether the caller has given up (the scheduler also closes the iterator).
        fetch: as in `LoadContext`, but beside the device, while others run: within the iterator,
            ``path = yield from context.fetch(ref, patterns)``. It ends when the iterator is closed.
    """

    features: Features
    budget_ms: float = 100.0
    cancelled: Callable[[], bool] = field(default=lambda: False)
    fetch: Callable[[str, Sequence[str]], Generator[Event | None, None, Path]] | None = None


@frozen(kw_only=True)
class Command:
    """A command-line verb. Its module is imported only when the verb is asked for.

    Args:
        name: the word after ``mlxengine``; letters, digits and hyphens.
        summary: one line for ``mlxengine --help``, and the description in the help of the verb.
        target: ``"module:function"``; called with the parsed options (`argparse.Namespace`) and a
            `mlxengine.cli.verbs.Output`, returns the exit code. An error of ours that it raises is shown,
            and decides the code.
        parser: ``"module:function"``; called with an `argparse.ArgumentParser` to add the verb's own options
            to. It has ``--json``, ``--quiet``, ``--verbose`` and ``--help`` already, and its sub-parsers too.
            ``None``: there are no others.
    """

    name: str = field(validator=instance_of(str))
    summary: str = field(validator=instance_of(str))
    target: str = field(validator=instance_of(str))
    parser: str | None = field(default=None, validator=optional(instance_of(str)))


@frozen(kw_only=True)
class Route:
    """A path of a server over HTTP. Its module is imported only when the path is first asked for.

    Args:
        path: ``"/v1/audio/transcriptions"``. Those of the server itself go before.
        target: ``"module:function"``; called once, with the server's `mlxengine_serve.Door`, returns an ASGI
            application. Keys and hosts are checked before it, and errors of ours that it raises are answered.
        methods: the methods of HTTP that it answers.
    """

    path: str = field(validator=instance_of(str))
    target: str = field(validator=instance_of(str))
    methods: tuple[str, ...] = field(default=("POST",), converter=texts)


class HookSpecs:
    """The hooks. All arguments are passed by name; an implementation may leave out those it ignores."""

    @hookspec
    def list_features(self) -> Sequence[Feature[Any]]:
        """The feature flags and capabilities that this plugin provides.

        Every name begins with the plugin's entry-point name and a dot. Called once, when the plugin is
        registered; must not import a model library (a feature's ``probe`` may).
        """
        raise AssertionError

    @hookspec
    def list_models(self) -> Sequence[ModelConfiguration]:
        """This plugin's entries of the model registry. Called once, when first needed."""
        raise AssertionError

    @hookspec
    def claim_model(self, card: ModelCard) -> Claim | None:
        """Whether this plugin serves the model, and how well; ``None`` declines.

        Pure: no I/O, no import of a model library, the same answer for the same card, and quick. The
        card holds every JSON file of the repository and the tensors' names and shapes; the features of its
        configuration are those of the load, and those that are set further out.
        """
        raise AssertionError

    @hookspec
    def load_model(self, card: ModelCard, context: LoadContext) -> Loaded | None:
        """Load a model that this plugin claimed.

        Runs on a loader thread, under the engine's mlx stream, while other models go on: import what
        you need, build the model lazily, and evaluate the weights in ``Loaded.warm``. Only the plugin
        whose claim won is called. Raise a `LoadError` for what cannot be loaded.
        """
        raise AssertionError

    @hookspec
    def generate(self, model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
        """Serve one request on a model that this plugin loaded.

        Validate the request and return an iterator of events; raise a `GenerationError` or a
        `ConfigurationError` for a request that cannot be served. The scheduler's thread calls ``next``
        once a turn: do one short step and yield an event, ``None`` if there is nothing to say this turn, or
        `Waiting` if there is nothing to do before a future is done. The last event is exactly one
        `Finished`. ``close()`` cancels: free what the request holds, and do not yield again. Return
        ``None`` for a request type that this plugin does not know.

        Where requests wait for a place (in a batch, say), give the iterator an attribute ``waiting``, true
        while its request has none: that time counts as waiting, for `Request.wait_timeout` and in figures.
        Without it a request runs from its first step. An attribute ``usage``, a `Usage`, says what was used
        so far; it is asked for where no `Finished` says so: the request was cancelled, or failed.

        An attribute ``step_seconds`` says what the step that runs should take, by what the plugin measured;
        ``None`` where nothing tells (a size that is new to the device). It is read on another thread while
        the step runs: one that takes many times as long is reported as hung (`Health.hung`). Without it the
        request's own earlier steps tell.

        Every call (this hook, each step, ``close``) comes on the same thread, never two at once.
        """
        raise AssertionError

    @hookspec
    def list_kinds(self) -> Sequence[Kind]:
        """The kinds of model that this plugin brings. Optional.

        Called once, when the plugin is registered; must import nothing heavy. Plugins that list the same
        kind are set aside, all of them. A plugin that serves a kind of somebody else's only claims it.
        """
        raise AssertionError

    @hookspec
    def list_commands(self) -> Sequence[Command]:
        """Command-line verbs that this plugin adds. Optional."""
        raise AssertionError

    @hookspec
    def list_routes(self) -> Sequence[Route]:
        """Paths that this plugin adds to a server (``mlxengine serve``). Optional."""
        raise AssertionError

    @hookspec
    def self_test(self, context: SelfTestContext) -> Sequence[Check]:
        """What ``mlxengine doctor`` runs for this kind: a real inference on something tiny. Optional."""
        raise AssertionError


# Of a plugin that serves models; one with `list_commands` alone needs none of them.
REQUIRED_HOOKS = ("claim_model", "load_model", "generate")

__all__ = [
    "ENTRY_POINT_GROUP",
    "Claim",
    "Command",
    "Fit",
    "HookSpecs",
    "LoadContext",
    "Loaded",
    "MemoryEstimate",
    "ModelState",
    "Route",
    "RunContext",
    "Workload",
    "hookimpl",
    "hookspec",
]
