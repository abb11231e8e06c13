from flux_engine.weights.lora.keys import parse
from flux_engine.weights.lora.layouts import LAYOUTS
from flux_engine.weights.lora.names import Catalogue, Sizes, spelled
from tests.flux_engine.weights.lora.written import TINY


def test_what_a_layout_writes_is_found_again() -> None:
    catalogue = Catalogue(Sizes(TINY))
    for layout in LAYOUTS.values():
        for name, place in spelled(TINY, layout.world):
            for leaf in ("down", "up", "alpha", "magnitude"):
                end = getattr(layout, leaf)
                parsed = parse(layout.key("dit", name) + end) if end else None
                assert parsed is None or (parsed.leaf, parsed.part) == (leaf, None)
                assert parsed is None or catalogue.find(parsed.module) == place


def test_flat_names_have_no_dots() -> None:
    assert LAYOUTS["kohya"].key("clip", "a.b") == "lora_te1_a_b"
    assert LAYOUTS["bfl"].key("dit", "a.b") == "diffusion_model.a.b"
