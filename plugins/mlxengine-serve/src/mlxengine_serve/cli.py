"""``mlxengine serve``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import ipaddress
import math
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxengine.cli.verbs import Output, positive
from mlxengine.contract.features import parse_flags
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError

from .options import LOOPBACK, ServedModel, ServerOptions, keys_of

if TYPE_CHECKING:
    import socket

Failed = Callable[[BaseException], None]
INTERRUPTED = 130
_MEGABYTE = 1 << 20
_MOST_FILES = 8192


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def alias(text: str) -> tuple[str, str]:
    """``NAME=MODEL``, for argparse."""
    name, _, model = text.partition("=")
    if not name or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL")
    return name, model


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add(
        "-m",
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="serve this model: org/name, a folder or a GGUF file; repeatable, the first one is the default. "
        "Without it every model that is complete on this machine is served, loaded when it is asked for",
    )
    add(
        "--alias",
        action="append",
        default=[],
        type=alias,
        metavar="NAME=MODEL",
        help="a further name of a model; * stands for anything; repeatable",
    )
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=8080, help="port to listen on (8080); 0 takes a free one")
    add(
        "--keys",
        type=Path,
        metavar="FILE",
        help="a file of keys, one a line, that only its owner may read; the variable MLXENGINE_SERVE_KEYS "
        "has further ones. With keys every request needs one",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a Host that requests may name, besides loopback names and addresses; * allows all",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web origin whose pages may call (https://app.example); * allows all",
    )
    add(
        "--allow-remote-images",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures that clients name by https URLs of this host; * is any public one, http://HOST "
        "goes without encryption too; repeatable",
    )
    add("--manage", action="store_true", help="let clients load and unload models")
    add(
        "--max-waiting",
        type=positive,
        default=64,
        metavar="N",
        help="most requests that wait for a model (64); a further one is refused with status 429",
    )
    add(
        "--wait-timeout",
        type=seconds,
        default=None,
        metavar="SECONDS",
        help="how long a request may wait for its turn; then it ends with status 504",
    )
    add("--run-timeout", type=seconds, default=None, metavar="SECONDS", help="how long it may run then")
    add(
        "--idle",
        type=seconds,
        default=None,
        metavar="SECONDS",
        help="take a model out of memory so long after its last request; the next one brings it back",
    )
    add(
        "--resume",
        type=seconds,
        default=None,
        metavar="SECONDS",
        help="let a stream whose connection was lost go on for so long; a client that comes back with "
        "Last-Event-ID gets the rest",
    )
    add(
        "--replicas",
        type=positive,
        default=1,
        metavar="N",
        help="processes that serve, with the models in each, behind one address (1); more need Ray",
    )
    add(
        "--ranks",
        type=positive,
        default=1,
        metavar="N",
        help="processes over which each language model is spread (1); more need mlxengine-shard",
    )
    add(
        "--write-timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="cut a connection that has taken no byte of its answer for so long (60)",
    )
    add("--max-body", type=positive, default=32, metavar="MB", help="largest body of a request (32)")
    add("--feature", action="append", default=[], metavar="NAME[=VALUE]", help="a feature flag; repeatable")
    add("--offline", action="store_true", help="make no request to the hub")
    add("--tls-cert", type=Path, metavar="FILE", help="serve HTTPS with this certificate chain (PEM)")
    add("--tls-key", type=Path, metavar="FILE", help="and its private key")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: an option cannot be used.
        MLXEngineError: a model that was named cannot be loaded.
    """
    from ._uvicorn import bind

    options = options_of(arguments)
    check_exposure(arguments.host, options)
    _allow_many_files()
    with (
        contextlib.closing(bind(arguments.host, arguments.port)) as listening,
        contextlib.ExitStack() as stack,
    ):
        said = sys.stdout  # replicas turn it away from results for as long as they are there
        application = _application(arguments, options, stack)
        with contextlib.redirect_stdout(said):
            url = _url(listening, tls=arguments.tls_cert is not None)
            out.emit({"url": url}, lambda: out.line(f"serving on {url}; Ctrl-C ends it"))
            out.flush()
        return asyncio.run(_serve(arguments, application, listening))


def _application(
    arguments: argparse.Namespace, options: ServerOptions, stack: contextlib.ExitStack
) -> Callable[[Failed], contextlib.AbstractAsyncContextManager[Any]]:
    """What makes the application: of an engine here, or of replicas that end with the stack."""
    flags: dict[str, object] = {"core.max_waiting": arguments.max_waiting}
    if arguments.ranks > 1:
        flags["shard.ranks"] = arguments.ranks
    for text in arguments.feature:
        flags.update(parse_flags(text))
    made_with = {
        "features": flags,
        "offline": True if arguments.offline else None,
        "idle_ttl": arguments.idle,
    }
    if arguments.replicas == 1:
        return lambda failed: _alone(options, made_with, failed)
    if options.manage:
        raise InvalidParameterError(
            "--manage loads and unloads models in one process, and --replicas has several.",
            hint="Leave out one of the two.",
        )
    try:
        serving = importlib.import_module("mlxengine_ray.serving")
    except ImportError as error:
        raise FeatureUnavailableError(
            "Several replicas need mlxengine-ray, which is not installed.",
            hint='pip install "mlxengine-ray[serve]", or leave out --replicas: one process does the same.',
        ) from error
    made: Callable[[Failed], contextlib.AbstractAsyncContextManager[Any]]
    made = stack.enter_context(serving.replicas(arguments.replicas, options, made_with))
    return made


@contextlib.asynccontextmanager
async def _alone(options: ServerOptions, made_with: dict[str, Any], failed: Failed) -> AsyncIterator[Any]:
    from mlxengine import AsyncInferenceEngine

    from .app import create_app

    async with AsyncInferenceEngine(**made_with) as engine:
        yield create_app(engine, options, failed=failed)


def options_of(arguments: argparse.Namespace) -> ServerOptions:
    """What the command line says, as a value."""
    return ServerOptions(
        models=tuple(ServedModel.of(text) for text in arguments.model),
        aliases=arguments.alias,
        keys=keys_of(arguments.keys),
        hosts=[*arguments.allow_host, *([] if _any_address(arguments.host) else [arguments.host])],
        origins=arguments.allow_origin,
        remote_images=arguments.allow_remote_images,
        manage=arguments.manage,
        max_body=arguments.max_body * _MEGABYTE,
        wait_seconds=arguments.wait_timeout,
        run_seconds=arguments.run_timeout,
        resume_seconds=arguments.resume,
    )


def check_exposure(host: str, options: ServerOptions) -> None:
    """Whether an address may be listened on with these keys.

    Raises:
        InvalidParameterError: others could reach it, and nothing keeps them out.
    """
    if not options.keys and not _is_loopback(host):
        raise InvalidParameterError(
            f"Listening on {host} without a key would let anybody use this machine.",
            hint="Write a key into a file and name it with --keys, or keep --host 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK


def _any_address(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")


def _allow_many_files() -> None:
    """Each connection is an open file, and many systems allow a program 256 or 1024 before it asks."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(
    arguments: argparse.Namespace,
    application: Callable[[Failed], contextlib.AbstractAsyncContextManager[Any]],
    listening: socket.socket,
) -> int:
    from ._uvicorn import Runner, catch_signals, config

    early: list[int] = []  # the address was said: whoever reads it may end this before all is there
    catch_signals(early.append)
    trouble: list[BaseException] = []

    def failed(error: BaseException) -> None:
        trouble.append(error)
        runner.should_exit = True

    async with application(failed) as app:
        runner = Runner(config(app, arguments.tls_cert, arguments.tls_key, arguments.write_timeout))
        for number in early:
            runner.end(number)
        await runner.serve(sockets=[listening])
    if trouble:
        raise trouble[0]
    return INTERRUPTED if runner.interrupted else 0


def _url(listening: socket.socket, *, tls: bool) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


__all__ = ["check_exposure", "configure", "options_of", "run"]
