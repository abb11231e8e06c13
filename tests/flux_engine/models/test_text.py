import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flux_engine.errors import SourceError
from flux_engine.models.text import (
    CLIP_L,
    T5_XXL,
    build_clip,
    build_t5,
    clip_pooled,
    load_tokenizer,
    t5_states,
    tokenise,
)
from flux_engine.weights.load import assemble
from tests.parity import tiny, tiny_tokenizers
from tests.parity.tiny import TinySpec

SPEC = TinySpec()
PROMPTS = ["a red fox in the snow", "the owl", "of the red and the an"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("model"), SPEC)


@pytest.fixture
def clip_tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder / "tokenizer")


@pytest.fixture
def t5_tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder / "tokenizer_2")


def model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    weights = tiny.clip_weights(SPEC) if name == "clip" else tiny.t5_weights(SPEC)
    config = folder / ("text_encoder" if name == "clip" else "text_encoder_2") / "config.json"
    return assemble(weights, where=name, dtype=dtype, config=config)[1]


@pytest.fixture
def clip(folder: Path) -> nn.Module:
    return model("clip", folder)


@pytest.fixture
def t5(folder: Path) -> nn.Module:
    return model("t5", folder)


def test_prompts_become_ids_of_one_length(clip_tokenizer: Any) -> None:
    tokens = tokenise(clip_tokenizer, PROMPTS, 77)
    start, end = tiny_tokenizers.CLIP_VOCAB - 2, tiny_tokenizers.CLIP_VOCAB - 1
    assert tokens.ids_BT.shape == (3, 77)
    assert tokens.ids_BT[:, 0].tolist() == [start] * 3
    assert tokens.ids_BT[:, -1].tolist() == [end] * 3  # padded with the end token
    assert tokens.truncated == (False, False, False)


def test_what_did_not_fit_is_counted_for_each_prompt(t5_tokenizer: Any) -> None:
    whole = tokenise(t5_tokenizer, ["the red " * 10], 64)
    length = int((whole.ids_BT != 0).sum())
    tokens = tokenise(t5_tokenizer, ["the red " * 10, "the"], length - 3)
    assert tokens.dropped == (3, 0)
    assert tokens.truncated == (True, False)
    assert tokens.ids_BT[0, -1] == 1  # the end token is kept


def test_an_empty_prompt_is_a_prompt(clip_tokenizer: Any, clip: nn.Module) -> None:
    tokens = tokenise(clip_tokenizer, [""], 77)
    assert tokens.dropped == (0,)
    assert clip_pooled(clip, tokens.ids_BT).shape == (1, SPEC.clip.width)


def test_pooled_is_the_normed_state_of_the_first_end_token(
    clip: nn.Module, clip_tokenizer: Any
) -> None:
    ids_BT = tokenise(clip_tokenizer, PROMPTS, 77).ids_BT
    pooled_BD = clip_pooled(clip, ids_BT)
    whole = clip(input_ids=ids_BT)
    assert torch.equal(pooled_BD, whole.pooler_output)
    ends = ids_BT.argmax(-1)
    assert torch.equal(pooled_BD, whole.last_hidden_state[torch.arange(3), ends])
    assert not pooled_BD.requires_grad


def test_clip_looks_back_only(clip: nn.Module, clip_tokenizer: Any) -> None:
    ids_BT = tokenise(clip_tokenizer, ["the owl"], 77).ids_BT
    end = int(ids_BT.argmax())
    other_BT = ids_BT.clone()
    other_BT[:, end + 1 :] = 5
    torch.testing.assert_close(clip_pooled(clip, ids_BT), clip_pooled(clip, other_BT))
    other_BT[:, 1] = 7
    assert (clip_pooled(clip, ids_BT) - clip_pooled(clip, other_BT)).abs().max() > 0.01


def test_padding_takes_part_in_t5(t5: nn.Module, t5_tokenizer: Any) -> None:
    ids_BT = tokenise(t5_tokenizer, ["the owl"], 16).ids_BT
    states_BTD = t5_states(t5, ids_BT)
    everything = t5(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state
    torch.testing.assert_close(states_BTD, everything)
    masked = t5(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).last_hidden_state
    assert (states_BTD - masked)[:, 0].abs().max() > 0.01


@pytest.mark.parametrize("name", ["clip", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_change_no_bit_of_a_row(
    name: str, dtype: torch.dtype, folder: Path, clip_tokenizer: Any, t5_tokenizer: Any
) -> None:
    tokenizer, encode = (
        (clip_tokenizer, clip_pooled) if name == "clip" else (t5_tokenizer, t5_states)
    )
    encoder = model(name, folder, dtype)
    ids_BT = tokenise(tokenizer, PROMPTS, 32).ids_BT
    among = encode(encoder, ids_BT)[0]
    elsewhere = encode(encoder, ids_BT[[2, 2, 0]])[2]
    assert among.dtype == dtype
    assert torch.equal(among, elsewhere)


@pytest.mark.parametrize(
    ("build", "config", "parameters"),
    [(build_clip, CLIP_L, 123_060_480), (build_t5, T5_XXL, 4_762_310_656)],
)
def test_the_published_sizes_are_written_out_here(
    build: Any, config: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        built = build(config)
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert built.config._attn_implementation == "sdpa"


def test_a_tokenizer_is_loaded_without_a_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("tokenizer", "tokenizer_2"):
        load_tokenizer(folder / name)


def test_code_that_lies_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    tiny_tokenizers.write_clip(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(SourceError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("files", [None, [], ["README.md"]])
def test_a_folder_without_a_tokenizer_is_named(files: list[str] | None, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("")
    with pytest.raises(SourceError, match=str(folder)):
        load_tokenizer(folder)


def test_pooling_follows_the_published_config_with_its_old_end_token() -> None:
    """`eos_token_id` 2 there means: where the largest id stands first."""
    torch.manual_seed(0)
    config = CLIP_L | {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
                       "num_hidden_layers": 2, "vocab_size": 100}  # fmt: skip
    clip = build_clip(config)
    ids_BT = torch.tensor([[98, 5, 2, 7, 99, 99]])
    states: Tensor = clip(input_ids=ids_BT).last_hidden_state
    assert torch.equal(clip_pooled(clip, ids_BT), states[:, 4])
