from batch import errors


def test_every_error_of_this_layer_is_caught_by_one_name() -> None:
    own = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(own) == 14
    assert all(issubclass(error, errors.BatchError) for error in own)
