"""The processes of one model: started together, told the same, and ended together when one of them fails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any

from attrs import asdict, define, field, frozen
from mlxengine.errors import RankLostError

from ._line import Line, Said, packed

START_SECONDS = 600.0
"""What reading the weights may take."""
SILENCE = 4.0
"""Seconds after which a rank that is at work and does not say that it lives is taken for stopped."""
START_SILENCE = 60.0
"""The same while it starts: libraries that are loaded may hold the interpreter's lock."""
_LOOK = 0.5  # seconds; what this process does not wait in, as it was stopped itself, does not count

Draw = Callable[[Sequence[int], bytes], Sequence[int]]
_TAIL = 600  # characters of a rank's own words that an error shows


@frozen(kw_only=True)
class Settings:
    """What is decided once and holds for all ranks.

    Args:
        path: the model's folder.
        ranks: how many.
        split: as in ``shard.split``.
        transport: the back end of mx.distributed.
        context: most positions that the model knows, or ``None``.
        prefix_bytes: most bytes of caches kept for later prompts; 0 keeps none.
        token_bytes: what a token of those counts, in all ranks together.
        shape_seconds: see `mlxengine.toolkit.shapes.Shapes`.
    """

    path: str
    ranks: int
    split: str
    transport: str
    context: int | None
    prefix_bytes: int
    token_bytes: int
    shape_seconds: float


@define(eq=False)
class Ranks:
    """The processes. All methods but `dead` are called on one thread.

    Args:
        settings: of all of them.
        room: see ``cache_room`` of `mlxengine.LoadContext`.
        generation: how often they were started.
        ready: whether all have read their weights.
        kept: bytes of caches that they keep for later prompts.
        spare: as in `mlxengine.toolkit.row.Decoder`.
        gone: numbers of parked rows that nobody wants any more, told with the next call.
    """

    settings: Settings
    room: Callable[[], int | None] = field(default=lambda: None)
    generation: int = 0
    ready: bool = False
    kept: int = 0
    spare: int = 0
    gone: list[int] = field(factory=list)
    _why: str = field(default="they were never started", init=False)
    _processes: list[subprocess.Popen[bytes]] = field(factory=list, init=False)
    _lines: list[Line] = field(factory=list, init=False)
    _poll: select.poll = field(factory=select.poll, init=False)
    _files: list[IO[str]] = field(factory=list, init=False)
    _hosts: IO[str] | None = field(default=None, init=False)
    _waits: set[int] = field(factory=set, init=False)
    _began: float = field(default=0.0, init=False)
    _quiet: list[float] = field(factory=list, init=False)  # seconds since each said anything

    def __attrs_post_init__(self) -> None:
        weakref.finalize(self, _kill, self._processes)  # a stopped rank does not see that its leader ends

    @property
    def pids(self) -> list[int]:
        """The processes, by rank."""
        return [process.pid for process in self._processes]

    def dead(self) -> list[int]:
        """The ranks whose process has ended; asked on any thread."""
        return [rank for rank, process in enumerate(self._processes) if process.poll() is not None]

    def start(self) -> None:
        """Start them, unless they run; `poll` tells when they are ready."""
        if self._processes:
            return
        count = self.settings.ranks
        self.generation += 1
        self._poll = select.poll()
        self.gone.clear()
        self.kept = self.spare = 0
        self._waits, self._began = set(range(count)), time.monotonic()
        try:
            for environment in self._environments(count):
                self._start(environment)
            self._quiet = [0.0] * count
            self._tell(packed(asdict(self.settings)))
        except BaseException:
            self.end("they could not all be started")
            raise

    def _start(self, environment: Mapping[str, str]) -> None:
        self._files.append(output := tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mlxengine_shard._rank", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for the leader
            )
        self._processes.append(process)
        self._lines.append(Line(ours, sends=SILENCE, reads=SILENCE))
        self._poll.register(ours, select.POLLIN)

    def poll(self, seconds: float) -> bool:
        """Wait for so long; whether all are ready.

        Raises:
            RankLostError: one of them ended, or cannot build its part.
        """
        self._check()
        if self._waits:
            if (heard := self._heard(seconds, self._waits, START_SILENCE)) is not None:
                self._waits.discard(heard[0])
            if time.monotonic() - self._began > START_SECONDS:
                raise self._lost(f"they were not ready after {START_SECONDS:.0f} s")
        self.ready = not self._waits
        return self.ready

    def call(self, name: str, within: float, draw: Draw | None = None, **arguments: object) -> dict[str, Any]:
        """Have every rank do the same; the answer of the first.

        Args:
            name: one of `mlxengine_shard._mirror.Mirror.CALLS`.
            within: seconds that it may take; what ``draw`` takes does not count.
            draw: draws tokens for the ranks: rows by their numbers, fp32 logits of shape (rows, vocabulary).
            arguments: of the call.

        Raises:
            RankLostError: one ended, does not go on, or did something else than another. All are ended.
            MemoryError: memory ran out in one. All are ended.
        """
        self._check()
        gone, self.gone[:] = list(self.gone), []
        try:
            self._tell(packed({"call": name, "room": self.room(), "gone": gone, **arguments}))
            answers: dict[int, Mapping[str, Any]] = {}
            silent = set(range(len(self._lines)))
            left = within
            self._quiet = [0.0] * len(self._lines)
            while silent:
                began = time.monotonic()
                heard = self._heard(min(left, _LOOK), silent, SILENCE)
                if heard is None:
                    left -= min(time.monotonic() - began, _LOOK)
                    if left <= 0:
                        raise self._lost(
                            f"{name} took longer than {within:.1f} s; no answer of {_named(sorted(silent))}"
                        )
                    continue
                rank, said = heard
                if draw is not None and "draw" in said.message:
                    tokens = draw(said.message["draw"], said.data)
                    self._tell(packed({"tokens": list(tokens)}))
                    left = within
                else:
                    answers[rank] = said.message
                    silent.discard(rank)
            self._agreed(answers)
        except BaseException:
            self.end("a call of the leader's did not come to its end")
            raise
        found = dict(answers[0])
        self.kept, self.spare = found["kept"], found["spare"]
        return found

    def end(self, why: str) -> None:
        """End all of them at once, whatever they do."""
        if not self._processes:
            return
        self._why = why
        _kill(self._processes)
        for process in self._processes:
            process.wait()
        for line in self._lines:
            line.close()
        for file in (*self._files, self._hosts):
            if file is not None:
                file.close()
        self._processes.clear()
        self._lines, self._files, self._hosts = [], [], None
        self.ready, self.kept, self.spare = False, 0, 0

    def _check(self) -> None:
        if not self._processes:
            raise RankLostError(f"The ranks of {self.settings.path} do not run: {self._why}.")

    def _tell(self, content: bytes) -> None:
        for rank, line in enumerate(self._lines):
            try:
                line.send(content)
            except OSError as error:
                raise self._lost(f"rank {rank} cannot be told anything: {error}") from error

    def _heard(self, seconds: float, working: Collection[int], silence: float) -> tuple[int, Said] | None:
        """What a rank says next, if it does within so long; raises what ended a rank.

        Those that are working say that they live as well, unless they are stopped or hang: what a long step
        computes, or waits for, does it with the interpreter's lock released.
        """
        began = time.monotonic()
        ready = dict(self._poll.poll(1000 * seconds))
        for rank in working:
            self._quiet[rank] += min(time.monotonic() - began, seconds)
        for rank, line in enumerate(self._lines):
            if line.fileno() not in ready:
                if rank in working and self._quiet[rank] >= silence:
                    raise self._lost(f"rank {rank} is stopped or hangs")
                continue
            self._quiet[rank] = 0.0
            try:
                said = line.read()
            except BlockingIOError:
                raise self._lost(f"rank {rank} is stopped or hangs") from None
            except (OSError, EOFError):
                raise self._lost(f"rank {rank} {self._ending(rank)}") from None
            if "error" in said.message:
                if said.message["memory"]:
                    self.end("memory ran out")
                    raise MemoryError(f"out of memory in rank {rank}: {said.message['error']}")
                raise self._lost(f"rank {rank} failed: {said.message['error']}")
            if said.message:
                return rank, said
        return None

    def _agreed(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        wanted = answers[0]["digest"]
        other = [rank for rank, answer in sorted(answers.items()) if answer["digest"] != wanted]
        if other:
            raise self._lost(f"{_named(other)} did something else than rank 0, or holds other caches")

    def _lost(self, why: str) -> RankLostError:
        self.end(why)
        return RankLostError(
            f"The {self.settings.ranks} ranks of {self.settings.path} were ended: {why}.",
            hint="They are started again for the next request.",
        )

    def _ending(self, rank: int) -> str:
        """How a process ended, and its last words."""
        try:
            code = self._processes[rank].wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its line"
        if code < 0:
            return f"was killed by signal {-code}"
        file = self._files[rank]
        file.seek(0)
        words = " ".join(file.read().split())[-_TAIL:]
        return f"ended with code {code}" + (f": {words}" if words else "")

    def _environments(self, count: int) -> list[dict[str, str]]:
        """What each rank's mx.distributed reads, as `mlx.launch` sets it for one machine."""
        ports = _free_ports(count)
        common = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        if "OMP_NUM_THREADS" in os.environ:
            common = {}
        if self.settings.transport == "nccl":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            devices = seen if len(seen) >= count else [str(rank) for rank in range(count)]
            common |= {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(ports[0]), "MLX_WORLD_SIZE": str(count)}
            own = [{"CUDA_VISIBLE_DEVICES": device} for device in devices[:count]]
        else:
            hosts = tempfile.NamedTemporaryFile("w", prefix="mlxengine-shard-")  # noqa: SIM115
            json.dump([[f"127.0.0.1:{port}"] for port in ports], hosts)
            hosts.flush()
            self._hosts = hosts
            common["MLX_HOSTFILE"], own = hosts.name, [{} for _ in ports]
        return [{**common, **more, "MLX_RANK": str(rank)} for rank, more in enumerate(own)]


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # each leads a session of its own


def _named(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in found]


__all__ = ["START_SECONDS", "Draw", "Ranks", "Settings"]
