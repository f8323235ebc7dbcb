"""A plugin of models that are as large, as quick and as long-winded as their folder's config says."""

import time

from mlxengine import Claim, Finished, Fit, Loaded, MemoryEstimate, Progress, Request, TextDelta, hookimpl

MB = 10**6
SETUP = Request(features=(), priority=7)


class Kept:
    """Serves folders whose config says how a model behaves; a request of priority 7 sets something up."""

    def __init__(self):
        self.loads, self.frees, self.parts = [], [], 0

    @hookimpl
    def claim_model(self, card):
        size = card.config.get("megabytes", 400) * MB
        return Claim(
            kind="kept", fit=Fit.NATIVE, uses_mlx=False, estimate=lambda _: MemoryEstimate(weights=size)
        )

    @hookimpl
    def load_model(self, card, context):
        name = context.path.name
        self.loads.append(name)
        model = {**card.config, "setup": []}
        for done in range(card.config.get("parts", 0)):
            context.report(Progress(stage="unpack", done=done, total=4, unit="parts"))
            wait_for(lambda done=done: done < self.parts or context.cancelled())
        return Loaded(
            model=model,
            warm=(time.sleep(0.002) for _ in range(card.config.get("slices", 1))),
            close=lambda: self.frees.append(name),
            setup=lambda: model["setup"],
        )

    @hookimpl
    def generate(self, model, request, context):
        if request.priority == SETUP.priority:
            model["setup"].append(request)
        for _ in range(model.get("steps", 2)):
            time.sleep(model.get("seconds", 0.001))
            yield TextDelta(text=str(len(model["setup"])))
        yield Finished()


def text(handle, request=None):
    return "".join(item.text for item in handle.run(request or Request()).events)


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
