"""Memory that the engines of one user have reserved on this machine, shared through a locked file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows shares nothing
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("mlxengine.memory")
VARIABLE = "MLXENGINE_RESERVATIONS"


def default_path() -> Path:
    """``MLXENGINE_RESERVATIONS``, else a file in the user's own folder of the temporary directory."""
    import tempfile

    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"mlxengine-{user}" / "reservations.json"


@frozen(kw_only=True)
class Holder:
    """An engine's entry: its process, the bytes reserved, and what it said of its models and loads."""

    pid: int
    reserved: int
    models: tuple[Mapping[str, Any], ...] = ()
    loads: tuple[Mapping[str, Any], ...] = ()


class Reservations:
    """One engine's entry in the file, and the sum of everybody else's.

    An entry belongs to a process; those of processes that are gone do not count and are removed. Where
    the file cannot be used, nothing is shared: that is logged, and loading goes on.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()
        self._key = f"{os.getpid()}-{id(self):x}"

    def claim(self, wanted: int, allowed: int) -> int | None:
        """Set this engine's entry to ``wanted`` bytes if all entries then stay within ``allowed``.

        Returns:
            ``None`` if it was set, else the bytes that others hold.
        """
        with self._locked() as entries:
            others = sum(item["bytes"] for key, item in entries.items() if key != self._key)
            if wanted + others > allowed:
                return int(others)
            self._set(entries, wanted)
        return None

    def set(
        self,
        wanted: int,
        models: Sequence[Mapping[str, object]] | None = None,
        loads: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """Set this engine's entry whatever others hold; 0 removes it unless something is being loaded.

        Args:
            models: what is said about each model in memory; ``None`` leaves what was said before.
            loads: the same for each load that is under way.
        """
        with self._locked() as entries:
            self._set(entries, wanted, models, loads)

    def others(self) -> int:
        """Bytes that other engines hold now."""
        with self._locked() as entries:
            return sum(item["bytes"] for key, item in entries.items() if key != self._key)

    def everyone(self) -> list[Holder]:
        """Every engine that holds something now."""
        with self._locked() as entries:
            return [
                Holder(
                    pid=item["pid"],
                    reserved=item["bytes"],
                    models=tuple(item.get("models", ())),
                    loads=tuple(item.get("loads", ())),
                )
                for item in entries.values()
            ]

    def _set(
        self,
        entries: dict[str, Any],
        wanted: int,
        models: Sequence[Mapping[str, object]] | None = None,
        loads: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        before = entries.pop(self._key, {})
        under_way = before.get("loads", []) if loads is None else list(loads)
        if wanted or under_way:
            entries[self._key] = {
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "bytes": wanted,
                "models": before.get("models", []) if models is None else list(models),
                "loads": under_way,
            }

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        try:
            if fcntl is None:
                raise OSError("this system has no file locks")
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115, PTH123 - held over the yield
        except OSError as error:
            log.info("Memory is not shared with other processes: %s", error)
            yield {}
            return
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                handle.seek(0)
                before = handle.read()
                entries = _alive(before)
                yield entries
                after = json.dumps(entries)
                if after != before:
                    handle.seek(0)
                    handle.truncate()
                    handle.write(after)
                    handle.flush()
            finally:
                # Closing is not enough: a process that was forked meanwhile has the file open too.
                fcntl.flock(handle, fcntl.LOCK_UN)


def _alive(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
        return {
            key: item
            for key, item in found.items()
            if isinstance(item["bytes"], int) and _started(item["pid"]) == item["started"] is not None
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # a damaged file is nobody's reservation


def _started(pid: int) -> str | None:
    """When a process started, so that a reused number is not taken for the same process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return None if Path("/proc/self").exists() else "alive"
