from flux_engine.approximation import EXACT, Approximation


def test_an_exact_engine_says_nothing() -> None:
    assert str(EXACT) == ""
    assert not EXACT
    assert not EXACT.narrows("dit")


def test_what_is_approximate_is_named() -> None:
    both = Approximation(frozenset({"step_cache", "fp8"}), ("t5", "dit"))
    assert str(both) == "fp8_weights(dit+t5), fp8, step_cache"
    assert both.step_cache
    assert both.products
    products = Approximation(frozenset({"fp8"}))
    assert str(products) == "fp8"
    assert products.narrows("dit")
    assert not products.narrows("t5")
