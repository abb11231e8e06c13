from pathlib import Path

import pytest

from batch.bucket import Bucket
from batch.errors import LoraError
from batch.lora_files import LoraFiles
from flux_engine.request import LoraUse
from schemas.lora import LoraEntry
from tests.batch.s3 import serving


def test_a_rows_lora_is_found_beside_the_manifest_and_below_declared_roots(tmp_path: Path) -> None:
    home, roots = tmp_path / "home", tmp_path / "roots"
    for folder in (home / "deep", roots):
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(b"x")
    files = LoraFiles((str(home), str(roots)))
    entry = LoraEntry(path="deep/a.safetensors", scale=0.5, merged=True)
    assert files.of_row(entry) == LoraUse(
        path=str(home / "deep" / "a.safetensors"), scale=0.5, merged=True
    )
    there = str(roots / "a.safetensors")
    assert files.of_row(LoraEntry(path=there)).path == there
    assert files.of_row(LoraEntry(path=f"file://{there}")).path == there


def test_what_lies_outside_is_refused_wherever_a_link_leads(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"x")
    (home / "link.safetensors").symlink_to(secret)
    files = LoraFiles((str(home),))
    for path in (str(secret), "../secret.safetensors", "link.safetensors", "https://x.org/a"):
        with pytest.raises(LoraError, match="lies outside the allowed places"):
            files.of_row(LoraEntry(path=path))
    with pytest.raises(LoraError, match=r"absent\.safetensors: there is no such file"):
        files.of_row(LoraEntry(path="absent.safetensors"))
    with pytest.raises(LoraError, match="is no address"):
        files.of_row(LoraEntry(path="a\0b"))
    assert files.of_job(LoraEntry(path=str(secret))).path == str(secret)


def test_a_hubs_repository_is_left_to_the_engine() -> None:
    entry = LoraEntry(model_id="someone/owls", download_source="huggingface", scale=2.0)
    assert LoraFiles(("/nowhere",)).of_row(entry) == LoraUse(
        model_id="someone/owls", download_source="huggingface", scale=2.0
    )


def test_an_object_is_fetched_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXMILL_LORAS", str(tmp_path))
    with serving() as server:
        bucket = Bucket(server.uri("loras"))
        bucket.put("m/owl.safetensors", b"one")
        files = LoraFiles((server.uri("loras/m"),))
        entry = LoraEntry(path="owl.safetensors")
        first = files.of_row(entry).path
        assert first is not None
        assert Path(first).read_bytes() == b"one"
        Path(first).write_bytes(b"ours")
        assert files.of_row(entry).path == first
        assert Path(first).read_bytes() == b"ours"  # not fetched again
        bucket.put("m/owl.safetensors", b"three")
        again = files.of_row(entry).path
        assert again is not None
        assert Path(again).read_bytes() == b"three"
        with pytest.raises(LoraError, match="there is no such object"):
            files.of_row(LoraEntry(path="bee.safetensors"))
        with pytest.raises(LoraError, match="outside"):
            files.of_row(LoraEntry(path="s3://loras/other/owl.safetensors"))


def test_pefts_configuration_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXMILL_LORAS", str(tmp_path))
    with serving() as server:
        bucket = Bucket(server.uri("loras"))
        for name in ("adapter_model.safetensors", "owl.safetensors"):
            bucket.put(f"m/{name}", b"one")
        files = LoraFiles((server.uri("loras/m"),))

        def beside(name: str) -> bytes | None:
            path = files.of_row(LoraEntry(path=name)).path
            assert path is not None
            config = Path(path).with_name("adapter_config.json")
            return config.read_bytes() if config.is_file() else None

        assert beside("adapter_model.safetensors") is None
        for alpha in (b"{}", b'{"lora_alpha": 8}'):
            bucket.put("m/adapter_config.json", alpha)
            assert beside("adapter_model.safetensors") == alpha
        assert beside("owl.safetensors") is None


def test_a_link_is_worn_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    link = tmp_path / "adapter_model.safetensors"
    link.symlink_to("blob")
    files = LoraFiles((str(tmp_path),))
    for path in (link.name, str(link), f"file://{link}"):
        assert files.of_row(LoraEntry(path=path)).path == str(link)
