"""What the verbs of the hub share: how it is reached, sizes as people write them, and questions."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from attrs import field, frozen

from .._config import load_settings
from ..errors import ConfigurationError, InvalidParameterError
from ._output import Output, tell

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@frozen(kw_only=True)
class Options:
    """Where the hub and the cache are, by the command line, else by the configuration file."""

    endpoint: str | None = None
    cache_dir: Path | None = None
    offline: bool = False
    ask_above: int = field(default=10 * 10**9)

    @property
    def local(self) -> dict[str, Any]:
        """For what makes no request."""
        return {"cache_dir": self.cache_dir}

    @property
    def remote(self) -> dict[str, Any]:
        """For what does."""
        return {"endpoint": self.endpoint, "cache_dir": self.cache_dir}


def add_cache(parser: argparse.ArgumentParser) -> None:
    """``--cache-dir``."""
    parser.add_argument("--cache-dir", type=Path, help="another cache than huggingface_hub's own")


def add_hub(parser: argparse.ArgumentParser) -> None:
    """``--cache-dir`` and ``--endpoint``. Tokens come from HF_TOKEN or `hf auth login`, never from here."""
    add_cache(parser)
    parser.add_argument("--endpoint", help="another hub than HF_ENDPOINT's, for example a mirror")


def options(arguments: argparse.Namespace) -> Options:
    """The options in force."""
    hub = load_settings().hub
    return Options(
        endpoint=getattr(arguments, "endpoint", None) or hub.endpoint,
        cache_dir=arguments.cache_dir or hub.cache_dir,
        offline=getattr(arguments, "offline", False) or bool(hub.offline),
        ask_above=parse_bytes(getattr(arguments, "ask_above", None) or hub.ask_above or "10 GB"),
    )


def parse_bytes(text: str) -> int:
    """Bytes that ``"500 MB"`` (decimal) or ``"2 GiB"`` (binary) name.

    Raises:
        InvalidParameterError: the text is not a size.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise InvalidParameterError(f"{text!r} is not a size.", hint="Write it as 500MB, 4GB or 2GiB.")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def confirm(question: str, out: Output, *, yes: bool) -> bool:
    """Ask, and return whether the answer is yes; ``yes`` answers it beforehand.

    Raises:
        ConfigurationError: nobody is there to answer.
    """
    if yes:
        return True
    if out.json or not sys.stdin.isatty():
        raise ConfigurationError(f"{question} Nobody is there to answer.", hint="Add --yes.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not answer:
        tell("Nothing was done.")
    return answer
