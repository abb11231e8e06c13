import torch

from flux_engine.checks import faults_of
from tests.flux_engine.asking import asked, picture


def test_each_fault_is_told() -> None:
    assert list(faults_of(asked(), 16)) == []
    assert list(faults_of(asked(input_image=picture(0)), 16)) == []
    wrong = asked(height=72, rand_device="tpu", input_image=torch.zeros(3, 8, 8, dtype=torch.uint8))
    told = list(faults_of(wrong, 16))
    assert [line.split()[0] for line in told] == [
        "height", "rand_device", "input_image", "input_image",
    ]  # fmt: skip
