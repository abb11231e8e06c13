import logging

import pytest
import torch

from flux_engine.shortage import attempt


def too_much() -> int:
    raise torch.OutOfMemoryError("no room on the card")


def test_what_fits_is_answered_and_what_does_not_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert attempt("decode", 4, lambda: 7) == 7
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert attempt("decode", 4, too_much) is None
    assert [(vars(r)["stage"], vars(r)["batch"]) for r in caplog.records] == [("decode", 2)]
    with pytest.raises(torch.OutOfMemoryError, match="no room on the card"):
        attempt("decode", 1, too_much)
