from typing import Any

import pytest

from flux_engine import SettingError
from flux_engine.vram.placements import NARROW, Placements, Policy

B = "bfloat16"
PRESETS: dict[str, tuple[dict[str, str], Policy]] = {
    "none": ({}, Policy()),
    "CPU offload": (
        {"offload_dtype": B, "offload_device": "cpu", "onload_dtype": B, "onload_device": "cuda",
         "preparing_dtype": B, "preparing_device": "cuda"},
        Policy(),
    ),
    "fp8": (
        {"offload_dtype": NARROW, "offload_device": "cpu", "onload_dtype": NARROW,
         "onload_device": "cuda", "preparing_dtype": NARROW, "preparing_device": "cuda"},
        Policy(narrow=True),
    ),
    "dynamic": (
        {"offload_dtype": NARROW, "offload_device": "cpu", "onload_dtype": NARROW,
         "onload_device": "cpu", "preparing_dtype": NARROW, "preparing_device": "cuda"},
        Policy(narrow=True),
    ),
    "disk": (
        {"offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk",
         "onload_device": "disk", "preparing_dtype": NARROW, "preparing_device": "cuda"},
        Policy(narrow=True, on_disk=True),
    ),
    "on the card throughout": (
        {"offload_dtype": B, "offload_device": "cuda", "onload_dtype": B, "onload_device": "cuda"},
        Policy(stays="always"),
    ),
    "streamed throughout": (
        {"offload_dtype": B, "offload_device": "cpu", "preparing_dtype": B,
         "preparing_device": "cpu"},
        Policy(stays="never"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_of_the_vocabulary_have_their_plan(name: str) -> None:
    fields, policy = PRESETS[name]
    computation = {"computation_dtype": B, "computation_device": "cuda"}
    assert Placements(**fields, **computation).policy(B, "cuda") == policy
    assert Placements(**fields).policy(B, "cuda") == policy


def test_a_disk_need_not_be_said_twice_and_on_a_cpu_everything_is_there() -> None:
    assert Placements(offload_dtype="disk").policy(B, "cuda").on_disk
    assert Placements(offload_device="cpu", preparing_device="cpu").policy(B, "cpu") == Policy()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"offload_dtype": "float16"},
            "offload_dtype is float16; allowed here: bfloat16, disk",
        ),
        ({"preparing_dtype": "disk"}, "preparing_dtype is disk; allowed here: bfloat16, float8"),
        (
            {"computation_dtype": NARROW},
            "computation_dtype is float8_e4m3fn; allowed here: b",
        ),
        ({"computation_device": "cpu"}, "computation_device is cpu; allowed here: cuda"),
        ({"preparing_device": "disk"}, "preparing_device is disk; allowed here: cpu, cuda"),
        ({"onload_device": "xpu"}, "onload_device is xpu; allowed here: cpu, cuda, disk"),
        ({"offload_dtype": "disk", "offload_device": "cpu"}, "is disk and offload_device is cpu"),
        ({"offload_dtype": B, "offload_device": "disk"}, "disk is both"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Placements(**fields).policy(B, "cuda")
