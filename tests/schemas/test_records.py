from schemas.records import ImageRecord
from schemas.sampling import Sampling


def test_every_sampling_value_is_recorded() -> None:
    assert set(Sampling.model_fields) <= set(ImageRecord.model_fields)
