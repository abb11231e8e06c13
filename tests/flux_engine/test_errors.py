import pickle

import pytest

from flux_engine.errors import CheckpointError, EngineError, NumbersBroke, RequestError


def test_a_broken_picture_is_its_rows_own_fault() -> None:
    assert issubclass(NumbersBroke, RequestError)
    assert issubclass(RequestError, EngineError)


def test_a_checkpoint_error_lists_every_tensor() -> None:
    error = CheckpointError(
        "ae.safetensors", missing=["b", "a"], unexpected=["x"], reason="read as VAE"
    )
    assert str(error) == "ae.safetensors: read as VAE; 2 missing: a, b; 1 unexpected: x"
    assert (error.missing, error.unexpected, error.misshapen) == (("a", "b"), ("x",), ())


@pytest.mark.parametrize("error", [NumbersBroke("NaN"), CheckpointError("here", missing=["a"])])
def test_errors_travel_between_processes(error: EngineError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
