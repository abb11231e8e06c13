import torch

from flux_engine.weights.keymaps.recipe import as_stored, halves_swapped, reshaped, stacked


def test_fused_rows_stand_in_the_order_of_their_keys() -> None:
    recipe = stacked(["q", "mlp"], rows=[1, 2], shape=(3, 4))
    assert recipe.shapes == ((1, 4), (2, 4))
    made = recipe.make([torch.zeros(1, 4), torch.ones(2, 4)])
    assert made[:, 0].tolist() == [0, 1, 1]


def test_a_biased_row_is_fused_the_same_way() -> None:
    assert stacked(["q", "k"], rows=[2, 2], shape=(4,)).shapes == ((2,), (2,))


def test_halves_change_places() -> None:
    assert halves_swapped("x", (4,)).make([torch.arange(4)]).tolist() == [2, 3, 0, 1]


def test_a_matrix_becomes_a_convolution() -> None:
    recipe = reshaped("q", stored=(2, 2), shape=(2, 2, 1, 1))
    assert recipe.shapes == ((2, 2),)
    assert recipe.make([torch.eye(2)]).shape == (2, 2, 1, 1)


def test_most_tensors_are_taken_as_they_are() -> None:
    tensor = torch.ones(3)
    assert as_stored("x", (3,)).make([tensor]) is tensor


def test_what_was_made_is_taken_apart_again() -> None:
    whole = torch.arange(24.0).reshape(6, 4)
    for recipe in (
        as_stored("x", (6, 4)),
        halves_swapped("x", (6, 4)),
        stacked(["q", "k", "mlp"], rows=[1, 2, 3], shape=(6, 4)),
        reshaped("x", stored=(24, 1), shape=(6, 4)),
    ):
        parts = recipe.unmake(whole)
        assert tuple(tuple(part.shape) for part in parts) == recipe.shapes
        assert torch.equal(recipe.make(parts), whole)
