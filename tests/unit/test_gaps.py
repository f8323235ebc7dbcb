"""What mlx cannot do on a device is tried, not assumed."""

from __future__ import annotations

import mlxengine._machine.backend  # noqa: F401 - before mlx
import pytest
from mlxengine import Device, diagnose
from mlxengine._machine import gaps


def test_what_every_plugin_here_needs_works_and_metal_kernels_need_metal() -> None:
    found = {gap.what: gap.reason for gap in gaps.gaps()}
    assert not {"weights of 4 bits", "fused attention", "convolutions", "bfloat16 products"} & found.keys()
    assert ("custom Metal kernels" in found) is (Device.detect().backend != "metal")


def test_a_gap_carries_the_library_s_own_words_and_doctor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("[teleport]  Not on\nthis device.")

    monkeypatch.setattr(gaps, "TRIALS", {"teleports": refuse, "compiled functions": list})
    assert gaps.gaps() == (gaps.Gap(what="teleports", reason="[teleport] Not on this device."),)
    found = diagnose()
    [check] = [item for item in found.checks if item.name == "mlx's gaps"]
    assert "1 of 2 things" in check.detail
    assert check.detail.endswith("; not teleports")
    assert [gap.what for gap in found.gaps] == ["teleports"]
