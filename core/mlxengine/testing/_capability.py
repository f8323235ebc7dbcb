"""The clauses about what a plugin says that it can do."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from ..contract.checks import CheckStatus, SelfTestContext
from ..contract.device import Device
from ._clauses import Part, clause, demand
from ._subject import Subject

_PROBE_SECONDS = 2.0


@clause(
    Part.CAPABILITY,
    "every capability of the loaded specimen is shown by an example, and every one shown is claimed",
    why="applications show their buttons by capabilities; one that nothing proves is only a promise.",
)
def capabilities_are_shown(subject: Subject) -> None:
    has = subject.claim.capabilities | subject.loaded.capabilities
    shown = frozenset(name for example in subject.specimen.examples for name in example.shows)
    demand(has <= shown, f"no example shows {sorted(has - shown)}")
    demand(shown <= has, f"the examples show {sorted(shown - has)}, which the model does not claim")


@clause(
    Part.CAPABILITY,
    "every feature can be explained on this machine, and its probe answers quickly",
    why="`mlxengine features` asks all of them; a probe that raises or hangs hides what it was for.",
)
def features_explain_themselves(subject: Subject) -> None:
    for feature in subject.hooks.features():
        begun = time.perf_counter()
        reason = feature.probe() if feature.probe is not None else None
        took = time.perf_counter() - begun
        demand(reason is None or isinstance(reason, str), f"the probe of {feature.name} returned {reason!r}")
        demand(took <= _PROBE_SECONDS, f"the probe of {feature.name} took {took:.1f} s")
        explained = subject.features.explain(feature.name)
        demand(explained.available or explained.reason, f"{feature.name} is unavailable without a reason")


@clause(
    Part.CAPABILITY,
    "the self-test, if there is one, passes and leaves nothing behind",
    why="`mlxengine doctor` runs it to tell a user whether this kind works on the machine.",
)
def self_test_passes(subject: Subject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = SelfTestContext(folder=Path(folder), device=Device.detect())
        checks = subject.lane.step(lambda: subject.hooks.self_test(context))
    if checks is None:
        return
    demand(checks, "self_test checked nothing")
    failed = [f"{check.name}: {check.detail}" for check in checks if check.status is CheckStatus.FAILED]
    demand(not failed, "; ".join(failed))
