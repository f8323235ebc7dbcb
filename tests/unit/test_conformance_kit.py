"""The conformance kit passes a plugin that keeps every clause, and names the clause that one breaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mlxengine.errors import InvalidParameterError, PluginLoadError
from mlxengine.testing import Example, Specimen, check_plugin, clauses

sys.path.append(str(Path(__file__).parent / "planted"))
import planted
from planted import CountRequest

FAULTS = {
    "ImportsHeavy": "contract/imports-nothing-heavy",
    "WrongSignature": "contract/hook-signatures",
    "GeneratorHook": "contract/hook-signatures",
    "ForeignFeatureName": "contract/feature-names",
    "ExperimentalButOn": "contract/feature-names",
    "EntryWithoutKind": "contract/registry-entries",
    "EntryWithASourceOfNothing": "contract/registry-entries",
    "EntryCheckedTomorrow": "contract/registry-entries",
    "ClaimsPickles": "contract/claims-its-own",
    "ReadsWhileClaiming": "contract/claim-is-pure",
    "ChangesItsMind": "contract/claim-is-pure",
    "ThinksLong": "contract/claim-is-quick",
    "ClaimsEverything": "contract/declines-foreign-models",
    "FallsOverNonsense": "contract/declines-foreign-models",
    "ReadsOnFirstClaim": "contract/claim-is-pure",
    "SlowOnFirstClaim": "contract/claim-is-quick",
    "DeadKind": "contract/kinds-resolve",
    "WrongHandle": "contract/kinds-resolve",
    "DeadCommand": "contract/commands-resolve",
    "ForgetsAFile": "behaviour/claimed-files-suffice",
    "YieldsText": "behaviour/yields-only-events",
    "FinishesTwice": "behaviour/one-finished-and-last",
    "NeverFinishes": "behaviour/one-finished-and-last",
    "HoldsLazyArrays": "behaviour/events-hold-host-values",
    "LosesText": "behaviour/deltas-add-up",
    "Counts": "behaviour/same-request-same-answer",
    "SharesState": "behaviour/interleaving-changes-nothing",
    "KnowsOneFolder": "behaviour/engine-gives-the-same",
    "IgnoresClose": "behaviour/cancel-within-a-step",
    "KeepsModels": "behaviour/close-frees-memory",
    "RaisesKeyErrors": "behaviour/errors-are-typed",
    "LoadsBrokenFiles": "behaviour/errors-are-typed",
    "WarmsUpWithEvents": "behaviour/warming-up-leaves-no-trace",
    "WarmsUpInOneGo": "behaviour/warming-up-leaves-no-trace",
    "LeavesItsWarmth": "behaviour/warming-up-leaves-no-trace",
    "ServesAnything": "behaviour/declines-unknown-requests",
    "PromisesVision": "capability/capabilities-are-shown",
    "ProbeRaises": "capability/features-explain-themselves",
    "SelfTestFails": "capability/self-test-passes",
}


@pytest.fixture
def specimen(tmp_path: Path) -> Specimen:
    folder = tmp_path / "counter"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "count"}))
    words = ["one ", "two ", "three ", "four ", "five "]
    (folder / "words.json").write_text(json.dumps(words, indent=8))
    return Specimen(
        path=folder,
        examples=[
            Example(request=CountRequest(upto=3), text="one two three ", shows={"words"}),
            Example(request=CountRequest(upto=5, start=2)),
        ],
        refused=[(CountRequest(upto=9), InvalidParameterError)],
    )


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> str:
    """The entry-point value of a fresh object with the fault."""
    monkeypatch.setattr(planted, "PLANTED", getattr(planted, fault)(), raising=False)
    monkeypatch.setenv("PLANTED", fault)
    return "planted:PLANTED"


def test_a_plugin_that_keeps_every_clause_passes(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = list(check_plugin("count", specimen, value=plant(monkeypatch, "Good")))
    assert [item.failure for item in outcomes if item.failure] == []
    assert all(item.checked for item in outcomes)
    assert len(outcomes) == len(clauses())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_clause_and_named(
    fault: str, specimen: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = plant(monkeypatch, fault)
    [outcome] = check_plugin("count", specimen, value=value, only=[FAULTS[fault]])
    assert outcome.failure is not None
    assert FAULTS[fault] in outcome.failure
    assert outcome.clause.why in outcome.failure
    assert "could not be imported" not in outcome.failure or fault == "HeavyImport"


def test_every_clause_has_a_planted_fault() -> None:
    assert {item.id for item in clauses()} == set(FAULTS.values())


def test_without_a_specimen_only_the_contract_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = list(check_plugin("count", value=plant(monkeypatch, "Good")))
    assert {item.clause.part for item in outcomes if item.checked} == {"contract"}
    assert [item.failure for item in outcomes if item.failure] == []


def test_a_plugin_that_is_not_installed_is_named() -> None:
    with pytest.raises(PluginLoadError, match="'no-such-plugin'"):
        list(check_plugin("no-such-plugin"))
