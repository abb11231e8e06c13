"""Pictures at their training sizes, as DiffSynth-Studio's own dataset makes them."""

from pathlib import Path

import pytest
from PIL import Image

from flux_engine.pictures import to_image, training_pixels
from flux_engine.sizes import training_size
from tests.batch.ingest.material import picture
from tests.parity import diffsynth_pictures
from tests.parity.diffsynth_oracle import LIBRARY

pytestmark = pytest.mark.oracle
MOST = 256 * 256
SIZES = ((480, 270), (250, 175), (1000, 750), (255, 257), (256, 256), (130, 97), (301, 64))


@pytest.mark.skipif(not LIBRARY.is_dir(), reason="DiffSynth-Studio is not installed in .oracle")
def test_sizes_and_pixels_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, size in enumerate(SIZES):
        (tmp_path / "in" / f"{i}.png").write_bytes(picture(*size, seed=i))
    found = diffsynth_pictures.resized(tmp_path / "in", MOST, tmp_path / "answer.json")
    for i, size in enumerate(SIZES):
        width, height = training_size(*size, MOST, 16)
        pixels = training_pixels(Image.open(tmp_path / "in" / f"{i}.png"), height, width)
        assert found[i] == {
            "size": [width, height],
            "digest": diffsynth_pictures.digest(to_image(pixels).tobytes()),
        }
