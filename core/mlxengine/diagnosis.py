"""Is this installation in order? What ``mlxengine doctor`` prints, as values for use in an application."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ._config import FEATURES_VARIABLE, Settings, feature_layers, load_settings
from ._engine.host import Host
from ._engine.installed import needs
from ._units import human
from ._version import __version__
from .contract._core_features import MOCK
from .contract.checks import Check, CheckStatus, SelfTestContext
from .contract.device import Device
from .contract.kinds import own_kinds
from .errors import CancelledError, HubUnavailableError, MLXEngineError

if TYPE_CHECKING:
    from ._machine.blas import Blas
    from ._machine.gaps import Gap

LIBRARIES = ("mlx", "huggingface-hub", "attrs", "pluggy")
_LOW_DISK = 5 * 2**30
_PATIENCE = 10.0


@frozen(kw_only=True)
class Diagnosis:
    """What was found.

    Args:
        checks: one for each thing that was looked at, in order.
        device: what this machine is.
        versions: name and version of every package that matters, ``None`` where it is not installed.
        blas: what became of the search for a fast BLAS; ``None`` where mlx cannot run.
        gflops: measured speed of an fp32 product on the CPU; ``None`` where it was not measured.
        gaps: what mlx refuses on this device, tried just now.
    """

    checks: tuple[Check, ...]
    device: Device
    versions: tuple[tuple[str, str | None], ...]
    blas: Blas | None = None
    gflops: float | None = None
    gaps: tuple[Gap, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return all(check.status is not CheckStatus.FAILED for check in self.checks)


def diagnose(*, self_test: bool = False, network: bool = False) -> Diagnosis:
    """Look at the installation: platform, mlx, BLAS, plugins, configuration, cache.

    Args:
        self_test: also run each plugin's own test, a real inference on something tiny.
        network: also ask the hub whether it answers.

    Never raises for what it finds wrong: that is a failed check with its remedy.
    """
    device = Device.detect()
    settings, configured = _configuration()
    host, plugins = _plugins(settings)
    blas, gflops, computing = _computing(device, host)
    gaps, tried = _gaps(device)
    checks = [
        Check(name="mlxengine", detail=f"{__version__} on Python {platform.python_version()}"),
        _device(device),
        *computing,
        *tried,
        *configured,
        *plugins,
        *_flags(host),
        *_cache(settings),
    ]
    if network:
        checks.append(_network(settings))
    if self_test and host is not None:
        checks.extend(_self_tests(host, device))
    return Diagnosis(
        checks=tuple(checks),
        device=device,
        versions=tuple((name, _version(name)) for name in _libraries(host)),
        blas=blas,
        gflops=gflops,
        gaps=gaps,
    )


def _libraries(host: Host | None) -> tuple[str, ...]:
    """The packages that matter: core's own, and those that the kinds name."""
    kinds = own_kinds() if host is None else host.kinds.values()
    return tuple(dict.fromkeys([*LIBRARIES, *(name for kind in kinds for name in kind.libraries)]))


def _device(device: Device) -> Check:
    parts = [device.name]
    if device.family and device.family not in device.name:
        parts.append(device.family)
    if device.compute_capability:
        parts.append("compute capability {}.{}".format(*device.compute_capability))
    if device.gpu_cores:
        parts.append(f"{device.gpu_cores} GPU cores")
    if device.driver:
        parts.append(f"driver {device.driver}")
    parts.append(f"{device.cores} cores")
    if device.total_memory:
        parts.append(f"{human(device.total_memory)} memory")
    if device.free_memory is not None:
        parts.append(f"{human(device.free_memory)} free")
    return Check(name="machine", detail=f"{', '.join(parts)} ({platform.system()} {platform.machine()})")


def _computing(device: Device, host: Host | None) -> tuple[Blas | None, float | None, list[Check]]:
    """mlx and, on a CPU, the BLAS it uses and how fast that is."""
    if device.problem is not None or device.backend == "none":
        if host is not None and not _wants_mlx(host):
            return None, None, [Check(name="mlx", detail="it cannot run, and no plugin here needs it")]
        remedy = (
            'Install a back end: pip install "mlxengine[cpu]" (or [cuda12], [cuda13]); mlx alone on a Mac.'
        )
        check = Check(
            name="mlx", status="failed", detail=str(device.problem or "it cannot run"), remedy=remedy
        )
        return None, None, [check]
    version = _version("mlx") or "of unknown version"
    checks = [Check(name="mlx", detail=f"{version}, computing on {device.backend}")]
    from ._machine import blas

    found = blas.load()
    if device.backend != "cpu" or found.status is blas.BlasStatus.NOT_NEEDED:
        return found, None, checks
    gflops = blas.measure()
    what = f"{found.library or found.status} {found.path or found.detail}".strip()
    detail = f"{what}; an fp32 product runs at {gflops:.0f} GFLOP/s"
    if gflops >= blas.SLOW_GFLOPS:
        checks.append(Check(name="BLAS", detail=detail))
    else:
        remedy = found.remedy or f"Name another one with {blas.VARIABLE}."
        checks.append(Check(name="BLAS", status="warning", detail=f"{detail}, which is slow", remedy=remedy))
    return found, gflops, checks


def _wants_mlx(host: Host) -> bool:
    """Whether a plugin is there that requires mlx; without any plugin, whoever asks wants to install one."""
    there = host.active()
    return not there or any(
        record.distribution is None or needs(record.distribution, "mlx") for record in there
    )


def _gaps(device: Device) -> tuple[tuple[Gap, ...], list[Check]]:
    """What mlx cannot do on this device: nothing to repair, but good to know."""
    if device.problem is not None or device.backend == "none":
        return (), []
    from ._machine.gaps import TRIALS, gaps

    found = gaps()
    detail = f"{len(TRIALS) - len(found)} of {len(TRIALS)} things that were tried work on {device.backend}"
    if found:
        detail += "; not " + ", ".join(gap.what for gap in found)
    return found, [Check(name="mlx's gaps", detail=detail)]


def _configuration() -> tuple[Settings, list[Check]]:
    try:
        settings = load_settings()
    except MLXEngineError as error:
        return Settings(), [_failed("configuration", error)]
    return settings, [Check(name="configuration", detail=str(settings.path or "no file; the defaults hold"))]


def _plugins(settings: Settings) -> tuple[Host | None, list[Check]]:
    try:
        host = Host.installed(settings, feature_layers(settings))
    except MLXEngineError as error:
        return None, [_failed(FEATURES_VARIABLE, error)]
    checks: list[Check] = []
    for record in host.records:
        name = f"plugin {record.name}"
        if record.off:
            checks.append(Check(name=name, detail=f"{record.distribution}, turned off"))
        elif record.error is not None:
            remedy = record.error.hint or f"Reinstall or uninstall {record.distribution or record.name}."
            checks.append(Check(name=name, status="failed", detail=record.error.message, remedy=remedy))
        else:
            detail = f"{record.distribution or 'an object'} {record.version or ''}".strip()
            if record.kinds:
                detail += f", brings {', '.join(kind.name for kind in record.kinds)}"
            checks.append(Check(name=name, detail=detail))
    if not host.active():
        first, *others = (f'"{kind.install}"' for kind in own_kinds())
        remedy = f"Install the kinds you need: pip install {first} (or {', '.join(others)})."
        checks.append(
            Check(name="plugins", status="failed", detail="no kind of model can run", remedy=remedy)
        )
    return host, checks


def _flags(host: Host | None) -> list[Check]:
    if host is None:
        return []
    try:
        host.features.check()
    except MLXEngineError as error:
        return [_failed("features", error)]
    found: list[Check] = []
    for feature in host.features:
        explanation = host.features.explain(feature)
        if not explanation.available:
            found.append(Check(name=f"feature {feature.name}", status="warning", detail=explanation.reason))
    if host.features.view().get(MOCK):
        detail = "core.mock is on: every answer is made up"
        found.append(Check(name="mock", status="warning", detail=detail, remedy="Turn core.mock off."))
    return found


def _cache(settings: Settings) -> list[Check]:
    """The folder of the models, what lies there, and the space on its disk."""
    from . import hub

    try:
        models = hub.list_local(cache_dir=settings.hub.cache_dir)
    except (MLXEngineError, OSError) as error:
        return [_failed("models", error)]
    ready = [model for model in models if model.ready]
    size = human(sum(model.size for model in models))
    checks = [Check(name="models", detail=f"{len(ready)} of {len(models)} are ready to load, {size} on disk")]
    for model in models:
        if not model.ready and model.partial:
            checks.append(
                Check(
                    name=f"model {model.id}",
                    status="warning",
                    detail=f"not complete, or not verified ({human(model.partial)} unfinished)",
                    remedy=f"Finish or check it: mlxengine pull {model.id}",
                )
            )
            continue
        try:
            report = hub.verify(model.id, cache_dir=settings.hub.cache_dir)
        except (MLXEngineError, OSError) as error:
            checks.append(_failed(f"model {model.id}", error))
            continue
        if report.ok:
            continue
        names = ", ".join(item.path for item in report.bad) or report.problem
        stranger = all(item.state is hub.FileState.UNVERIFIED for item in report.bad) and not report.problem
        checks.append(
            Check(
                name=f"model {model.id}",
                status="warning" if stranger else "failed",
                detail=f"never verified: {names}" if stranger else f"damaged: {names}",
                remedy=f"mlxengine {'pull' if stranger else 'repair'} {model.id}",
            )
        )
    folder = settings.hub.cache_dir or Path(os.environ.get("HF_HUB_CACHE") or Path.home())
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK
    checks.append(
        Check(
            name="disk",
            status="warning" if low else "ok",
            detail=f"{human(free)} free",
            remedy="Remove models: mlxengine du, mlxengine rm." if low else "",
        )
    )
    return checks


def _network(settings: Settings) -> Check:
    from . import hub
    from ._hub import redact

    end = time.monotonic() + _PATIENCE
    try:
        hub.search(
            "smollm", limit=1, endpoint=settings.hub.endpoint, cancelled=lambda: time.monotonic() > end
        )
    except CancelledError:
        return _failed("hub", HubUnavailableError(f"It does not answer within {_PATIENCE:g} s."))
    except MLXEngineError as error:
        return _failed("hub", error)
    return Check(
        name="hub",
        detail=f"{redact(settings.hub.endpoint or os.environ.get('HF_ENDPOINT') or 'the hub')} answers",
    )


def _self_tests(host: Host, device: Device) -> Iterator[Check]:
    for record in host.active():
        if "self_test" not in record.hooks:
            continue
        with tempfile.TemporaryDirectory(prefix="mlxengine-doctor-") as folder:
            context = SelfTestContext(folder=Path(folder), device=device)
            try:
                results = host.listed(record, "self_test", Check, context=context)
                yield from (evolve(check, name=f"{record.name}: {check.name}") for check in results)
            except MLXEngineError as error:
                yield _failed(f"{record.name}: self test", error)


def _failed(name: str, error: Exception) -> Check:
    message = getattr(error, "message", None) or str(error)
    return Check(name=name, status="failed", detail=message, remedy=getattr(error, "hint", None) or "")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["Diagnosis", "diagnose"]
