"""What the house promises about itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import load_job

ROOT = Path(__file__).parent.parent
ROOMS = ("schemas", "flux_engine", "batch", "jobs", "shapes")
MODULES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py" and "recipes" not in path.parts
)
DOORS = {
    "ray": {
        "batch/nodes.py",
        "batch/lane.py",
        "batch/pool.py",
        "batch/telemetry.py",
        "batch/training/ranks.py",
        "jobs/cli.py",
        "jobs/submit.py",
        "jobs/train.py",
        "jobs/work.py",
    },
    "transformers": {"flux_engine/models/text.py", "shapes/text.py", "shapes/vocabulary.py"},
    "safetensors": {
        "flux_engine/weights/reader.py",
        "flux_engine/weights/writer.py",
        "shapes/cache.py",
        "shapes/checkpoint.py",
        "shapes/folder.py",
        "shapes/text.py",
    },
    "boto3": {"batch/bucket.py"},
    "botocore": {"batch/bucket.py"},
    "lmdb": {"batch/targets/export/dmd2.py"},
    "yaml": {"jobs/cli.py"},
    "typer": {
        "jobs/distill.py",
        "jobs/export_targets.py",
        "jobs/work.py",
        "jobs/convert_lora.py",
        "jobs/generate.py",
        "jobs/ingest.py",
        "jobs/inspect.py",
        "jobs/submit.py",
        "jobs/train.py",
        "jobs/verify.py",
    },
}
LONGEST_FILE = 400  # lines


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test_of_its_name(module: Path) -> None:
    test = ROOT / "tests" / module.with_name(f"test_{module.name}")
    assert test.is_file(), f"{test} is missing"


def test_every_file_says_what_it_is_and_none_is_an_attic() -> None:
    for module in MODULES:
        text = (ROOT / module).read_text()
        assert ast.get_docstring(ast.parse(text)), f"{module} has no first line"
        assert len(text.splitlines()) <= LONGEST_FILE, f"{module} is too long"
        assert module.stem not in {"utils", "util", "helpers", "common", "misc", "core"}


def imports(module: Path) -> set[str]:
    """The packages that a module imports, at any depth of it."""
    out: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module.split(".")[0])
    return out


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_package_has_few_doors(package: str) -> None:
    opened = {str(module) for module in MODULES if package in imports(module)}
    assert opened <= DOORS[package]


# FastGen reads tensors from such files; what is in them is nothing but tensors, and a test of that
# module loads them with weights_only=True
LOADER = "flux_engine/weights/unpickled.py"
SAVERS = {"batch/targets/export/fastgen.py"}


def test_no_code_reads_or_writes_pickles() -> None:
    for module in MODULES:
        assert not imports(module) & {"pickle", "cloudpickle", "dill", "joblib"}
        loads = re.findall(r"torch\.load\(.*", (ROOT / module).read_text())
        assert not loads or str(module) == LOADER
        assert all("weights_only=True" in line for line in loads)
        assert "torch.save(" not in (ROOT / module).read_text() or str(module) in SAVERS


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=str)
def test_every_recipe_is_a_job(recipe: Path) -> None:
    load_job(recipe, [])


def test_tests_that_need_a_gpu_are_collected_where_the_batch_layers_libraries_are_not() -> None:
    absent = ("ray", "pydantic", "typer", "modelscope", "diffusers", "accelerate", "boto3")
    code = (
        "import sys, pytest; "
        f"sys.modules.update(dict.fromkeys({absent})); "
        "sys.exit(pytest.main(['--collect-only', '-qq', '-m', 'gpu', '-p', 'no:timeout', "
        "'-p', 'no:cacheprovider']))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "tests/flux_engine/vram/test_residency.py" in made.stdout
