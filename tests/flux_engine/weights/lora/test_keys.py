import pytest

from flux_engine.weights.lora.keys import Leaf, parse, refusal


@pytest.mark.parametrize(
    ("key", "leaf"),
    [
        ("m.x.lora_A.weight", Leaf("m.x", "down")),
        ("m.x.lora_B.default.weight", Leaf("m.x", "up")),
        ("m.x.lora_B.bias", Leaf("m.x", "up bias")),
        ("m_x.lora_down.weight", Leaf("m_x", "down")),
        ("m_x.lora_up.2.weight", Leaf("m_x", "up", 2)),
        ("m.processor.qkv_lora1.down.weight", Leaf("m.processor.qkv_lora1", "down")),
        ("m.q_proj.lora_linear_layer.up.weight", Leaf("m.q_proj", "up")),
        ("m.dora_scale", Leaf("m", "magnitude")),
        ("m.lora_magnitude_vector.default.weight", Leaf("m", "magnitude")),
        ("m.lora_magnitude_vector", Leaf("m", "magnitude")),
        ("m.lokr_w2_a", Leaf("m", "w2.a")),
        ("m.diff", Leaf("m", "diff")),
        ("m.diff_b", Leaf("m", "diff bias")),
        ("m.query_norm.scale.diff", Leaf("m.query_norm", "diff")),
        ("m.query_norm.scale", Leaf("m.query_norm", "set")),
        ("m.attn.norm_added_q.weight", Leaf("m.attn.norm_added_q", "set")),
        ("m.alpha", Leaf("m", "alpha")),
    ],
)
def test_the_end_of_a_key_says_which_tensor_it_is(key: str, leaf: Leaf) -> None:
    assert parse(key) == leaf
    assert refusal(key) is None


@pytest.mark.parametrize("key", ["m.weight", "m.bias", "lora_A.weight", "m.lora_C.weight", ""])
def test_other_keys_are_of_no_form(key: str) -> None:
    assert parse(key) is None


@pytest.mark.parametrize("key", ["m.hada_t1", "m.oft_blocks", "m.a1.weight", "m.weight_scale"])
def test_what_cannot_be_taken_has_a_reason(key: str) -> None:
    assert refusal(key)
