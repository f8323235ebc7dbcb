"""List the models that the engines of this user hold in memory now, in this and in other processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._memory.reservations import Reservations
from .._units import human
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults()


def run(arguments: argparse.Namespace, out: Output) -> int:
    del arguments
    now = time.time()
    found = [
        {
            "pid": holder.pid,
            "program": _program(holder.pid),
            "reserved_bytes": holder.reserved,
            "models": [_timed(model, now) for model in holder.models],
            "loads": [_begun(load, now) for load in holder.loads],
        }
        for holder in Reservations().everyone()
    ]

    def table() -> None:
        if not found:
            out.line("No engine holds a model.")
            return
        for engine in found:
            reserved = human(float(str(engine["reserved_bytes"])))
            out.line(f"{engine['pid']}  {reserved} reserved  {engine['program'] or ''}".rstrip())
            models: Any = engine["models"]
            if models:
                heads = ("  model", "kind", "reserved", "caches", "kv", "running", "waiting", "stays")
                out.table(heads, [_row(model) for model in models])
            loads: Any = engine["loads"]
            for load in loads:
                out.line(f"  {load['id']}  {_far(load)}, {load['seconds']:.0f} s so far")

    out.emit({"engines": found}, table)
    return 0


def _timed(model: Mapping[str, Any], now: float) -> dict[str, Any]:
    return {
        **{key: value for key, value in model.items() if key != "used_at"},
        "idle_seconds": 0.0 if _busy(model) else max(0.0, now - model.get("used_at", now)),
    }


def _begun(load: Mapping[str, Any], now: float) -> dict[str, Any]:
    told = {key: value for key, value in load.items() if key != "began_at"}
    return {**told, "seconds": max(0.0, now - load["began_at"])}


def _far(load: Mapping[str, Any]) -> str:
    """At which stage a load is, and how far."""
    if load["stage"] is None:
        return "loading"
    far = f" {load['done'] / load['total']:.0%}" if load["total"] else ""
    return f"loading: {load['stage']}{far}"


def _row(model: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        f"  {model['id']}",
        model["kind"],
        human(model["reserved_bytes"]),
        human(model["cache_bytes"]),
        _kv(model),
        model["running"],
        model["waiting"],
        _stays(model),
    )


def _busy(model: Mapping[str, Any]) -> bool:
    return bool(model["running"] or model["waiting"])


def _kv(model: Mapping[str, Any]) -> str:
    """What the running requests fill, of what is set aside for them."""
    used, total = model["kv_used_bytes"], model["kv_total_bytes"]
    return "-" if used is None or total is None else f"{human(used)} of {human(total)}"


def _stays(model: Mapping[str, Any]) -> str:
    """How long a model stays in memory, and why."""
    reasons = ["pinned"] if model["pinned"] else []
    reasons += [f"kept by {name}" for name in model["kept_by"]]
    if not reasons and not _busy(model) and model["ttl_seconds"] is not None:
        reasons.append(f"{max(0.0, model['ttl_seconds'] - model['idle_seconds']):.0f} s")
    if model["degraded"]:
        reasons.append("degraded")
    return ", ".join(reasons) or "until room is needed"


def _program(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
