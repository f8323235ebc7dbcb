"""The hooks: one verb. The entry point names this module, so it imports no server."""

from __future__ import annotations

from collections.abc import Sequence

from mlxengine import Command, hookimpl


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="serve",
            summary="Serve models of every kind over HTTP, to clients of OpenAI's and other interfaces.",
            parser="mlxengine_serve.cli:configure",
            target="mlxengine_serve.cli:run",
        )
    ]
