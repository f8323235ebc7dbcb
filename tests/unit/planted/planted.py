"""A plugin that counts words aloud, and one fault planted in it for each clause of the conformance kit.

A model is a folder with ``config.json`` (``{"model_type": "count"}``) and ``words.json`` (a list).
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import ClassVar

from attrs import frozen
from mlxengine import (
    Check,
    Claim,
    Command,
    Event,
    Feature,
    Finished,
    Fit,
    Kind,
    Loaded,
    ModelConfiguration,
    Prepared,
    PrepareRequest,
    Provenance,
    Request,
    Stage,
    TextDelta,
    TextRequest,
    TokenUsage,
    hookimpl,
)
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError


@frozen(kw_only=True)
class CountRequest(Request):
    upto: int
    start: int = 1


@frozen(kw_only=True)
class Lazy(Event):
    array: object


class Model:
    def __init__(self, words):
        self.words = words


class Good:
    """Keeps every clause."""

    files = ("config.json", "words.json")

    @hookimpl
    def list_features(self):
        return [Feature[bool](name="count.aloud", default=True, summary="Count aloud.")]

    @hookimpl
    def list_models(self):
        checked = Provenance(checked="2026-11-01", source="hand")
        return [ModelConfiguration(id="someone/counter", kind="count", provenance=checked)]

    @hookimpl
    def list_commands(self):
        return [Command(name="count", summary="Count.", target="planted:main")]

    @hookimpl
    def claim_model(self, card):
        if card.architecture != "count":
            return None
        return Claim(kind="count", fit=Fit.NATIVE, files=self.files, capabilities={"words"}, uses_mlx=False)

    @hookimpl
    def load_model(self, card, context):
        try:
            words = json.loads((context.path / "words.json").read_text())
        except ValueError as error:
            raise IncompatibleWeightsError(str(error)) from error
        model = Model(words)
        return Loaded(model=model, warm_up=lambda: self.warm_up(model))

    def warm_up(self, model):
        for _ in model.words:
            yield None

    @hookimpl
    def generate(self, model, request, context):
        if isinstance(request, PrepareRequest):
            return self.prepare(request.request)
        if isinstance(request, TextRequest):
            return self.echo(request)
        if not isinstance(request, CountRequest):
            return None
        if request.upto > len(model.words):
            raise InvalidParameterError("I cannot count so far.")
        return self.count(model, request)

    def count(self, model, request):
        for number in range(request.start, request.upto + 1):
            yield None
            yield self.delta(model, number)
        yield Finished(usage=TokenUsage(completion_tokens=request.upto))

    def delta(self, model, number):
        return TextDelta(text=model.words[number - 1])

    def prepare(self, request):
        yield Prepared(token_ids=range(len(request.prompt)), text=request.prompt)
        yield Finished()

    def echo(self, request):
        yield TextDelta(text=request.prompt)
        yield Finished(usage=TokenUsage(prompt_tokens=len(request.prompt)))

    @hookimpl
    def self_test(self):
        return [Check(name="it counts")]


def main(arguments):
    return 0


class ImportsHeavy(Good):
    @hookimpl
    def list_models(self):
        importlib.import_module("numpy")
        return super().list_models()


class WrongSignature(Good):
    @hookimpl
    def claim_model(self, card, colour):
        return None


class GeneratorHook(Good):
    @hookimpl
    def generate(self, model, request, context):
        yield Finished()


class ForeignFeatureName(Good):
    @hookimpl
    def list_features(self):
        return [Feature[bool](name="llm.aloud", default=True, summary="Count aloud.")]


class ExperimentalButOn(Good):
    @hookimpl
    def list_features(self):
        return [Feature[bool](name="count.x", default=True, summary="X.", stage=Stage.EXPERIMENTAL)]


class EntryWithoutKind(Good):
    @hookimpl
    def list_models(self):
        return [ModelConfiguration(id="someone/counter")]


class EntryWithASourceOfNothing(Good):
    @hookimpl
    def list_models(self):
        source = Provenance(checked="2026-11-01", source="hand", fields=("licence",))
        return [ModelConfiguration(id="someone/counter", kind="count", sources=(source,))]


class EntryCheckedTomorrow(Good):
    @hookimpl
    def list_models(self):
        checked = Provenance(checked="2999-01-01", source="hand")
        return [ModelConfiguration(id="someone/counter", kind="count", provenance=checked)]


class ClaimsPickles(Good):
    files = ("config.json", "words.json", "*.bin")


class ReadsWhileClaiming(Good):
    @hookimpl
    def claim_model(self, card):
        if card.path is not None:
            (card.path / "config.json").read_text()
        return super().claim_model(card)


class ChangesItsMind(Good):
    calls = 0

    @hookimpl
    def claim_model(self, card):
        self.calls += 1
        claim = super().claim_model(card)
        return claim and Claim(kind="count", fit=Fit(1 + self.calls % 2), files=self.files, uses_mlx=False)


class ThinksLong(Good):
    @hookimpl
    def claim_model(self, card):
        time.sleep(0.05)
        return super().claim_model(card)


class ClaimsEverything(Good):
    @hookimpl
    def claim_model(self, card):
        return Claim(kind="count", fit=Fit.FALLBACK, files=self.files, uses_mlx=False)


class FallsOverNonsense(Good):
    @hookimpl
    def claim_model(self, card):
        card.documents.get("config.json", {})["model_type"].lower()
        return super().claim_model(card)


class DeadCommand(Good):
    @hookimpl
    def list_commands(self):
        return [Command(name="count", summary="Count.", target="planted:gone")]


class AddsASharedOption(Good):
    @hookimpl
    def list_commands(self):
        return [Command(name="count", summary="Count.", parser="planted:adds_json", target="planted:main")]


def adds_json(parser):
    parser.add_argument("--json")


class ForgetsAFile(Good):
    files = ("config.json",)


class YieldsText(Good):
    def delta(self, model, number):
        return model.words[number - 1]


class FinishesTwice(Good):
    def count(self, model, request):
        yield from super().count(model, request)
        yield Finished()


class NeverFinishes(Good):
    def count(self, model, request):
        yield from (event for event in super().count(model, request) if not isinstance(event, Finished))


class HoldsLazyArrays(Good):
    def delta(self, model, number):
        return Lazy(array=iter(()))


class LosesText(Good):
    def delta(self, model, number):
        return TextDelta(text="" if number == 2 else model.words[number - 1])


class Miscounts(Good):
    def echo(self, request):
        yield TextDelta(text=request.prompt)
        yield Finished(usage=TokenUsage(prompt_tokens=len(request.prompt) + 1))


class Counts(Good):
    """Carries something from one request into the next."""

    requests = 0

    def count(self, model, request):
        self.requests += 1
        yield TextDelta(text=f"{self.requests}. ")
        yield from super().count(model, request)


class SharesState(Good):
    """Right as long as one request runs at a time."""

    def count(self, model, request):
        self.number = request.start
        while self.number <= request.upto:
            yield TextDelta(text=model.words[self.number - 1])
            self.number += 1
        yield Finished(usage=TokenUsage(completion_tokens=request.upto))


class KnowsOneFolder(Good):
    """Loads, but not from where the engine has the files."""

    @hookimpl
    def load_model(self, card, context):
        if "claimed" not in str(context.path):
            raise IncompatibleWeightsError("I know only one folder.")
        return super().load_model(card, context)


class IgnoresClose(Good):
    def count(self, model, request):
        events = list(super().count(model, request))
        for event in events:
            try:
                yield event
            except GeneratorExit:
                yield events[-1]


class KeepsModels(Good):
    kept: ClassVar = []

    @hookimpl
    def load_model(self, card, context):
        loaded = super().load_model(card, context)
        self.kept.append(loaded.model)
        return loaded


class RaisesKeyErrors(Good):
    @hookimpl
    def generate(self, model, request, context):
        if isinstance(request, CountRequest) and request.upto > len(model.words):
            raise KeyError(request.upto)
        return super().generate(model, request, context)


class LoadsBrokenFiles(Good):
    @hookimpl
    def load_model(self, card, context):
        try:
            return super().load_model(card, context)
        except IncompatibleWeightsError:
            return Loaded(model=Model([]))


class WarmsUpWithEvents(Good):
    def warm_up(self, model):
        yield TextDelta(text=model.words[0])


class WarmsUpInOneGo(Good):
    def warm_up(self, model):
        return iter(list(super().warm_up(model)))


class LeavesItsWarmth(Good):
    def warm_up(self, model):
        yield None
        model.words[0] = "warm "


class ServesAnything(Good):
    @hookimpl
    def generate(self, model, request, context):
        return super().generate(model, request, context) or iter([Finished()])


class PromisesVision(Good):
    @hookimpl
    def load_model(self, card, context):
        loaded = super().load_model(card, context)
        return Loaded(model=loaded.model, capabilities={"vision"})


class ProbeRaises(Good):
    @hookimpl
    def list_features(self):
        def probe():
            raise OSError("no such device")

        return [Feature[bool](name="count.aloud", default=True, summary="Count aloud.", probe=probe)]


class SelfTestFails(Good):
    @hookimpl
    def self_test(self, context):
        assert Path(context.folder).is_dir()
        return [Check(name="it counts", status="failed", detail="it does not")]


class ReadsOnFirstClaim(Good):
    read = False

    @hookimpl
    def claim_model(self, card):
        if not ReadsOnFirstClaim.read:
            ReadsOnFirstClaim.read = True
            Path("/dev/null").read_bytes()
        return super().claim_model(card)


class SlowOnFirstClaim(Good):
    slow = True

    @hookimpl
    def claim_model(self, card):
        if SlowOnFirstClaim.slow:
            SlowOnFirstClaim.slow = False
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
        return super().claim_model(card)


class DeadKind(Good):
    @hookimpl
    def list_kinds(self):
        return [Kind(name="count", run="planted:NOBODY")]


class WrongHandle(Good):
    @hookimpl
    def list_kinds(self):
        return [Kind(name="count", handle="planted:Model")]


PLANTED = globals()[os.environ.get("PLANTED", "Good")]()
