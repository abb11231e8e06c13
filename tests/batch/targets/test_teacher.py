import json
from pathlib import Path

from tests.batch.stages.test_distill import work
from tests.conftest import ShapesEngine
from tests.flux_engine.adapters.wearing import file_of


def test_an_identity_says_all_that_an_answer_depends_on(
    tmp_path: Path, shapes_engine: ShapesEngine
) -> None:
    file = file_of(tmp_path, shapes_engine())
    sampling = {"loras": [{"path": str(file), "scale": scale} for scale in (0.5, 0.25)]}
    work(tmp_path, {"prompt": ["owl"]}, target={"kind": "pair"}, sampling=sampling)
    told = json.loads((tmp_path / "out" / "_run" / "identity.json").read_text())
    assert list(told["teacher"]["weights"]) == ["flux1-shapes.safetensors"]
    assert told["teacher"]["loras"][str(file)]["scale"] == 0.5
    assert told["teacher"]["loras"][f"{file} (2)"]["scale"] == 0.25
    assert told["teacher"]["dtype"] == told["text"]["dtype"] == "float32"
    assert list(told["vae"]["weights"]) == ["ae.safetensors"]
    assert {len(told["text"][name]) for name in ("clip", "t5")} == {1}
    for name in ("tokenizer", "tokenizer_2"):
        assert "tokenizer.json" in told["text"][name]
    assert told["latent"] == {"scale": 0.3611, "shift": 0.1159, "channels": 16}
    assert {"torch", "transformers"} <= set(told["versions"])
