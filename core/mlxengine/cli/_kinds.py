"""What verbs ask of the kinds of model: the options that each adds, and their values for one of them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._config import load_settings
from .._engine.host import Host
from ..contract.kinds import Kind, Option
from ..errors import PluginContractError, UnsupportedInputError
from ._frame import UsageError

log = logging.getLogger("mlxengine.cli")
_PREFIX = "kind: "


def known() -> Mapping[str, Kind]:
    """The kinds that are known here."""
    return Host.installed(load_settings()).kinds


def default() -> str:
    """The kind that a verb takes where nobody names one."""
    return next(iter(known()))


def add_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options of all kinds for ``what`` (``"run"``, ``"bench"``, ``"workload"``).

    A flag that several kinds have is there once, and takes what one of them can read.
    """
    readers: dict[str, list[Option]] = {}
    for kind in known().values():
        try:
            options = _options(kind, what)
        except PluginContractError as error:  # this kind cannot be asked; the others can
            log.warning("%s", error)
            continue
        new = [option for option in options if option.flag not in readers]
        for option in options:
            readers.setdefault(option.flag, []).append(option)
        if new:
            add(parser, new, kind.summary or f"models of kind {kind.name}", readers)


def add(
    parser: argparse.ArgumentParser,
    options: Sequence[Option],
    title: str,
    readers: Mapping[str, Sequence[Option]] | None = None,
) -> None:
    """Add options in a group of their own; their texts are turned into values by `values`.

    ``readers`` are the options of all kinds by flag, where there are others.
    """
    group = parser.add_argument_group(title)
    for option in options:
        flags = [option.flag] if option.short is None else [option.short, option.flag]
        group.add_argument(
            *flags,
            dest=f"{_PREFIX}{option.flag}",
            action="append",
            type=_readable([option] if readers is None else readers[option.flag]),
            metavar=option.metavar or option.name.upper(),
            help=option.help,
        )


def _readable(options: Sequence[Option]) -> Callable[[str], str]:
    def check(text: str) -> str:
        problem = ""
        for option in options:
            try:
                option.type(text)
            except (ValueError, argparse.ArgumentTypeError) as error:
                problem = problem or str(error)
            else:
                return text
        raise argparse.ArgumentTypeError(problem)

    return check


def asked(kind: Kind, what: str) -> Any:
    """The object that says how a kind is asked or measured.

    Raises:
        UnsupportedInputError: it says nothing of it.
    """
    found = kind.find(what)
    if found is None:
        raise UnsupportedInputError(
            f"`mlxengine {what}` does not know how to ask a model of kind {kind.name!r}.",
            hint="See whether its plugin brings a verb of its own: mlxengine --help.",
        )
    return found


def values(arguments: argparse.Namespace, options: Sequence[Option], kind: str) -> dict[str, Any]:
    """The values of a kind's options, by name.

    Raises:
        UsageError: a value cannot be read, is given twice, or belongs to an option of other kinds only.
    """
    given = {
        name.removeprefix(_PREFIX): texts
        for name, texts in vars(arguments).items()
        if name.startswith(_PREFIX) and texts is not None
    }
    found = {}
    for option in options:
        texts = given.pop(option.flag, None)
        if texts is None:
            found[option.name] = option.default
            continue
        try:
            read = tuple(option.type(text) for text in texts)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UsageError(f"{option.flag}: {error}.") from error
        found[option.name] = read if option.repeated else read[-1]
    if given:
        raise UsageError(
            f"Models of kind {kind!r} take no {', '.join(sorted(given))}.",
            hint=f"They take: {', '.join(option.flag for option in options) or 'no options'}.",
        )
    return found


def _options(kind: Kind, what: str) -> Sequence[Option]:
    found = kind.find(what)
    if found is None:
        return ()
    options: Sequence[Option] = found.options() if what == "workload" else found.options
    return options
