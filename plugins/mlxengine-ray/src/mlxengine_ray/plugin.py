"""The hooks: one verb. The entry point names this module, so it imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from mlxengine import Command, hookimpl


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="batch",
            summary="Run a model over files, row by row: vectors, answers, scores or pictures.",
            parser="mlxengine_ray.cli:configure",
            target="mlxengine_ray.cli:run",
        )
    ]
