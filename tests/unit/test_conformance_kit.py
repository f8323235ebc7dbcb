"""The conformance kit passes a plugin that keeps every clause, and names the clause that one breaks."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs
import pytest
from mlxengine import GenerateParams
from mlxengine.errors import PluginLoadError
from mlxengine.testing import Specimen, check_plugin, clauses, parameters_beyond

from tests.unit.test_careless_plugins import FAULTS as CARELESS

Plant = Callable[[str], str]

# Faults that nobody but the plugin's own users would notice; the others are in test_careless_plugins.
FAULTS = {
    "ImportsHeavy": "contract/imports-nothing-heavy",
    "GeneratorHook": "contract/hook-signatures",
    "ExperimentalButOn": "contract/feature-names",
    "EntryWithoutKind": "contract/registry-entries",
    "EntryWithASourceOfNothing": "contract/registry-entries",
    "EntryCheckedTomorrow": "contract/registry-entries",
    "ClaimsPickles": "contract/claims-its-own",
    "ReadsWhileClaiming": "contract/claim-is-pure",
    "FallsOverNonsense": "contract/declines-foreign-models",
    "ReadsOnFirstClaim": "contract/claim-is-pure",
    "SlowOnFirstClaim": "contract/claim-is-quick",
    "DeadKind": "contract/kinds-resolve",
    "WrongHandle": "contract/kinds-resolve",
    "DeadCommand": "contract/commands-resolve",
    "AddsASharedOption": "contract/commands-resolve",
    "ForgetsAFile": "behaviour/claimed-files-suffice",
    "LosesText": "behaviour/deltas-add-up",
    "Miscounts": "behaviour/prepared-counts-agree",
    "Counts": "behaviour/same-request-same-answer",
    "SharesState": "behaviour/interleaving-changes-nothing",
    "KnowsOneFolder": "behaviour/engine-gives-the-same",
    "KeepsModels": "behaviour/close-frees-memory",
    "LoadsBrokenFiles": "behaviour/errors-are-typed",
    "WarmsUpWithEvents": "behaviour/warming-up-leaves-no-trace",
    "WarmsUpInOneGo": "behaviour/warming-up-leaves-no-trace",
    "LeavesItsWarmth": "behaviour/warming-up-leaves-no-trace",
    "ServesAnything": "behaviour/declines-unknown-requests",
    "PromisesVision": "capability/capabilities-are-shown",
    "SelfTestFails": "capability/self-test-passes",
}


def test_a_plugin_that_keeps_every_clause_passes(specimen: Specimen, plant: Plant) -> None:
    outcomes = list(check_plugin("count", specimen, value=plant("Good")))
    assert [item.failure for item in outcomes if item.failure] == []
    assert all(item.checked for item in outcomes)
    assert len(outcomes) == len(clauses())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_clause_and_named(
    fault: str, specimen: Specimen, plant: Plant
) -> None:
    value = plant(fault)
    [outcome] = check_plugin("count", specimen, value=value, only=[FAULTS[fault]])
    assert outcome.failure is not None
    assert FAULTS[fault] in outcome.failure
    assert outcome.clause.why in outcome.failure
    assert "could not be imported" not in outcome.failure


def test_every_clause_has_a_planted_fault() -> None:
    found = {*FAULTS.values(), *(item.clause for item in CARELESS if item.clause)}
    assert {item.id for item in clauses()} == found


@pytest.mark.parametrize(
    "fault", ["ExitsInClaim", "ExitsInFeatures", "ExitsInLoad", "NeverReturns", "WarmsForEver", "CloseRaises"]
)
def test_no_fault_ends_the_kit_or_keeps_it(fault: str, specimen: Specimen, plant: Plant) -> None:
    began = time.monotonic()
    outcomes = list(check_plugin("count", attrs.evolve(specimen, seconds=0.5), value=plant(fault)))
    assert len(outcomes) == len(clauses())
    assert any(item.failure for item in outcomes)
    assert time.monotonic() - began < 20


def test_without_a_specimen_only_the_contract_is_checked(plant: Plant) -> None:
    outcomes = list(check_plugin("count", value=plant("Good")))
    assert {item.clause.part for item in outcomes if item.checked} == {"contract"}
    assert [item.failure for item in outcomes if item.failure] == []


def test_a_plugin_that_is_not_installed_is_named() -> None:
    with pytest.raises(PluginLoadError, match="'no-such-plugin'"):
        list(check_plugin("no-such-plugin"))


def test_each_parameter_of_text_that_is_not_honoured_is_asked_for_by_itself() -> None:
    names = [item.name for item in attrs.fields(GenerateParams)]
    assert [set(params.given) for params in parameters_beyond(())] == [{name} for name in names]
    assert len(parameters_beyond({"seed", "stop"})) == len(names) - 2
    assert GenerateParams().given == set()
    assert GenerateParams(seed=0, temperature=0, stop="x").given == {"seed", "temperature", "stop"}
