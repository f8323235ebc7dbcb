"""What careless authors do, each as a plugin that is in order but for that."""

from __future__ import annotations

import os
import sys
import threading
import time

import attrs
from attrs import frozen
from mlxengine import (
    Claim,
    Command,
    Event,
    Fit,
    Kind,
    Loaded,
    MemoryEstimate,
    ModelState,
    hookimpl,
)
from planted import Good


class Panic(BaseException):
    """What a native library's binding raises when the library gave up."""


@frozen(kw_only=True)
class Chunk(Event):
    data: bytes


# -- found and listed ------------------------------------------------------------------------------------


class ExitsInFeatures(Good):
    @hookimpl
    def list_features(self):
        sys.exit("no licence")


class ExitsInModels(Good):
    @hookimpl
    def list_models(self):
        sys.exit("no licence")


class ListsAKindOfOthers(Good):
    @hookimpl
    def list_kinds(self):
        return [Kind(name="llm")]


class ListsItsKind(Good):
    @hookimpl
    def list_kinds(self):
        return [Kind(name="count")]


class HidesAVerb(Good):
    @hookimpl
    def list_commands(self):
        return [Command(name="run", summary="Run away.", target="planted:main")]


class ExitsInAVerb(Good):
    @hookimpl
    def list_commands(self):
        return [Command(name="count", summary="Count.", target="careless:leave")]


def leave(arguments):
    sys.exit(f"cannot count {arguments}")


class ExitsInSelfTest(Good):
    @hookimpl
    def self_test(self):
        sys.exit(0)


# -- claims ----------------------------------------------------------------------------------------------


def claiming(**changes):
    class Claiming(Good):
        @hookimpl
        def claim_model(self, card):
            claim = super().claim_model(card)
            return claim and attrs.evolve(claim, **changes)

    return Claiming


class ExitsInClaim(Good):
    @hookimpl
    def claim_model(self, card):
        sys.exit(3)


class ClaimsAllAsItsOwn(Good):
    @hookimpl
    def claim_model(self, card):
        return Claim(kind="count", fit=Fit.NATIVE, files=self.files, uses_mlx=False)


ClaimsBeyondNative = claiming(fit=10)


ClaimsANumberAsKind = claiming(kind=5)


ClaimsAProblemInWords = claiming(problem="bad")


HonoursItsOwn = claiming(honours=["count.aloud"])


class ChangesTheCard(Good):
    @hookimpl
    def claim_model(self, card):
        card.config["model_type"] = "count"
        return super().claim_model(card)


EstimatesLessThanNothing = claiming(estimate=lambda _workload: MemoryEstimate(weights=-(2**30)))


EstimateRaises = claiming(estimate=lambda workload: MemoryEstimate(weights=workload.pages))


# -- loads -----------------------------------------------------------------------------------------------


def loading(**changes):
    class Loading(Good):
        @hookimpl
        def load_model(self, card, context):
            return attrs.evolve(super().load_model(card, context), **changes)

    return Loading


class ExitsInLoad(Good):
    @hookimpl
    def load_model(self, card, context):
        sys.exit("no device")


class LoadsNothing(Good):
    @hookimpl
    def load_model(self, card, context):
        return None


TellsNothing = loading(info=None)


class WarmsInOneSlice(Good):
    @hookimpl
    def load_model(self, card, context):
        def warm():
            time.sleep(0.4)
            yield None

        return attrs.evolve(super().load_model(card, context), warm=warm())


class WarmsForEver(Good):
    @hookimpl
    def load_model(self, card, context):
        def warm():
            while True:
                time.sleep(0.001)
                yield None

        return attrs.evolve(super().load_model(card, context), warm=warm())


StateOfNone = loading(state=lambda: None)


NeverLetsGo = loading(state=lambda: ModelState(caches=2**30))


class CloseRaises(Good):
    @hookimpl
    def load_model(self, card, context):
        def close():
            raise ValueError("closed twice")

        loaded = super().load_model(card, context)
        return Loaded(model=loaded.model, close=close)


SetUpRaises = loading(setup=lambda: 1 / 0)


class LeavesAThread(Good):
    gate = threading.Event()

    @hookimpl
    def load_model(self, card, context):
        threading.Thread(target=self.gate.wait, name="careless", daemon=True).start()
        return super().load_model(card, context)


# -- requests --------------------------------------------------------------------------------------------


class PanicsInAStep(Good):
    def count(self, model, request):
        yield self.delta(model, 1)
        raise Panic("index out of bounds")


class BlocksInAStep(Good):
    def count(self, model, request):
        yield self.delta(model, 1)
        time.sleep(0.4)
        yield from super().count(model, request)


class CountsForEver(Good):
    def count(self, model, request):
        while True:
            time.sleep(0.001)
            yield self.delta(model, 1)


class IsSilentForEver(Good):
    def count(self, model, request):
        while True:
            time.sleep(0.001)
            yield None


class NeverReturns(Good):
    gate = threading.Event()

    def __init__(self):
        NeverReturns.gate = threading.Event()

    def count(self, model, request):
        yield self.delta(model, 1)
        self.gate.wait(60)


class SaysTooMuchAtOnce(Good):
    made = 0

    def count(self, model, request):
        for _ in range(request.upto):
            SaysTooMuchAtOnce.made += 1
            yield Chunk(data=bytes(20 * 2**20))
        yield from super().count(model, request)


PLANTED = globals().get(os.environ.get("PLANTED", ""), Good)()
