"""What the verbs of the hub share: how it is reached, sizes as people write them, and questions."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from attrs import field, frozen

from .. import hub
from .._config import load_settings
from .._engine.host import Host
from .._shown import shown
from .._units import human
from ..contract.configuration import ModelCard, ModelRef
from ..contract.device import Device
from ..contract.fit import FitVerdict, fit
from ..contract.hookspecs import Claim
from ..errors import ConfigurationError, InvalidParameterError, ModelNotFoundError, NoPluginForModelError
from ._output import Output, tell

ASK_ABOVE = 10 * 10**9
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@frozen(kw_only=True)
class Options:
    """Where the hub and the cache are, by the command line, else by the configuration file."""

    endpoint: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    ask_above: int
    offline: bool = False

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
    settings = load_settings().hub
    return Options(
        endpoint=getattr(arguments, "endpoint", None) or settings.endpoint,
        cache_dir=arguments.cache_dir or settings.cache_dir,
        offline=getattr(arguments, "offline", False) or bool(settings.offline),
        ask_above=_limit(getattr(arguments, "ask_above", None) or settings.ask_above),
    )


def _limit(text: str | None) -> int:
    return parse_bytes(text) if text else ASK_ABOVE


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
    sys.stderr.write(f"{shown(question)} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not answer:
        tell("Nothing was done.")
    return answer


def claim_on(card: ModelCard, out: Output) -> Claim | None:
    """The claim of the plugin that serves the model; ``None``, and a note, if there is no such plugin.

    Raises:
        MLXEngineError: what loading it would end with for sure.
    """
    try:
        claim = Host.installed(load_settings()).owner(card).claim
    except NoPluginForModelError as error:
        out.note(f"note: {error.message} Its usual files are fetched.")
        return None
    if claim.problem is not None:
        raise claim.problem
    return claim


def verdict_on(card: ModelCard, claim: Claim | None) -> FitVerdict:
    """Whether the model fits in this machine's memory, as far as its plugin can tell."""
    if claim is None:
        return FitVerdict.UNKNOWN
    kind = Host.installed(load_settings()).kind(claim.kind)
    return fit(card, claim, kind, Device.detect()).verdict


def consent(plan: hub.DownloadPlan, verdict: FitVerdict, chosen: Options, out: Output, *, yes: bool) -> bool:
    """Show what would be fetched, and ask if it is large; ``False`` is a no."""
    if not out.json:
        out.note(summary(plan, verdict))
    question = f"Fetch {human(plan.need)} for {plan.repo}?"
    return plan.need <= chosen.ask_above or confirm(question, out, yes=yes)


def summary(plan: hub.DownloadPlan, verdict: FitVerdict) -> str:
    """Files, size, what is missing, and whether it fits, in one line."""
    text = f"{plan.repo}: {len(plan.files)} files, {human(plan.total)}"
    if plan.need != plan.total:
        text += f", {human(plan.need)} to fetch"
    memory = {
        FitVerdict.FITS: "fits in memory",
        FitVerdict.TIGHT: "fits tightly in memory",
        FitVerdict.WONT_FIT: "does not fit in memory",
    }.get(verdict)
    return f"{text}; {memory}" if memory else text


def ask_before_fetching(model: str, out: Output, *, offline: bool, yes: bool) -> None:
    """For verbs that load a model: show and ask what `pull` would, unless the model is ready.

    Raises:
        ConfigurationError: the answer was no, or nobody is there to answer.
    """
    ref = ModelRef.parse(model)
    hub_settings = load_settings().hub
    chosen = Options(
        endpoint=hub_settings.endpoint,
        cache_dir=hub_settings.cache_dir,
        ask_above=_limit(hub_settings.ask_above),
    )
    if ref.repo_id is None or offline or hub_settings.offline or _is_ready(model, chosen):
        return
    card = hub.resolve(model, **chosen.remote)
    claim = claim_on(card, out)
    plan = hub.plan(card, files=claim.files if claim is not None else None, **chosen.remote)
    if not consent(plan, verdict_on(card, claim), chosen, out, yes=yes):
        raise ConfigurationError(f"{model} was not fetched.", hint="Name a smaller model with --model.")


def _is_ready(model: str, chosen: Options) -> bool:
    try:
        return hub.verify(model, **chosen.local).ok
    except ModelNotFoundError:
        return False
