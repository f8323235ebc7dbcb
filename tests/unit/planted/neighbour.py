"""Other authors' plugins, which are in order."""

from mlxengine import Claim, Finished, Fit, Kind, Loaded, MemoryEstimate, hookimpl


class Neighbour:
    """Serves folders with ``{"model_type": "neighbour"}``; ``bytes`` is what such a model takes."""

    architecture = "neighbour"

    @hookimpl
    def claim_model(self, card):
        if card.architecture != self.architecture:
            return None
        needed = MemoryEstimate(weights=card.config.get("bytes", 0))
        return Claim(kind="neighbour", fit=Fit.NATIVE, uses_mlx=False, estimate=lambda _workload: needed)

    @hookimpl
    def load_model(self, card, context):
        return Loaded(model="neighbour")

    @hookimpl
    def generate(self, model, request, context):
        return iter([Finished()])


class Twin(Neighbour):
    """Serves the same models as the careless plugin."""

    architecture = "count"


class TwinOfItsKind(Twin):
    """And lists the same kind."""

    @hookimpl
    def list_kinds(self):
        return [Kind(name="count")]


PLANTED = Neighbour()
