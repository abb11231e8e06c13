"""A LoRA file from any layout into another one, or a look at what it changes.

    python -m jobs.convert_lora IN OUT --layout diffusers|kohya|peft|diffsynth|bfl
    python -m jobs.convert_lora IN [--model NAME]

`peft` makes a folder, the others a file. Nothing is lost unless --rank or --dtype asks for it, and
then the error is printed. Exit status: 0; 2 the file cannot be read or written as asked.
"""

from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from rich.console import Console

from flux_engine.assembly import open_model
from flux_engine.errors import EngineError, SettingError
from flux_engine.weights.load import load_models
from flux_engine.weights.lora.file import Lora, resolved
from flux_engine.weights.lora.layouts import LayoutName
from flux_engine.weights.lora.models import Models
from flux_engine.weights.lora.read import lora_file, read_lora
from flux_engine.weights.lora.report import report
from flux_engine.weights.lora.write import Written, write_lora
from flux_engine.weights.source import ModelSource, fetch
from jobs import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DTYPES = ("float32", "bfloat16", "float16")


def models_of(name: str) -> Models:
    """The models of a bundled name or a folder, as stored but in float32."""
    _, groups = open_model(name)
    loaded = load_models(groups, dtype=torch.float32)
    if loaded.dit is None:
        raise SettingError(f"model {name}: has no transformer")
    return Models(loaded.dit, loaded.clip, loaded.t5)


def show(lora: Lora, models: Models | None, console: Console) -> None:
    """One line for each parameter that the LoRA changes."""
    lines = cli.table(lora.where, "model", "parameter", "change", "rank", "‖ΔW‖", "‖ΔW‖/‖W‖")
    base = None if models is None else bases(lora, models)
    for m in report(lora, base):
        norm, relative = ("?" if v is None else f"{v:.3g}" for v in (m.norm, m.relative))
        name = f"{m.module}.{m.parameter}"
        lines.add_row(m.role, name, m.kind, str(m.rank or ""), norm, relative)
    console.print(lines)


def bases(lora: Lora, models: Models) -> dict:  # type: ignore[type-arg]
    return {
        target: models.parameters(target[0])[name] for target, name in models.names(lora).items()
    }


def tell(written: Written, console: Console) -> None:
    dtype = str(written.dtype).removeprefix("torch.")
    console.print(f"{written.files[0]}: {written.tensors} tensors in {dtype}")
    for module, error in sorted(written.lost.items(), key=lambda item: -item[1]):
        console.print(f"lost {error:.2e} of ‖ΔW‖ in {module}")
    if written.rounded:
        console.print(f"rounded to {dtype}: at most {written.rounded:.2e} of a tensor's norm")


def convert(
    source: Path,
    to: Path | None,
    layout: str,
    model: str | None,
    rank: int | None,
    dtype: str | None,
) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for name, value, allowed in (
        ("--layout", layout, get_args(LayoutName)), ("--dtype", dtype, DTYPES)
    ):  # fmt: skip
        if value is not None and value not in allowed:
            raise SettingError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    models = None if model is None else models_of(model)
    file = lora_file(fetch(ModelSource(str(source))))
    lora = read_lora(file, None if models is None else models.sizes)
    if to is None:
        show(lora, models, console)
        return
    if to.resolve() == file.resolve():
        raise SettingError(f"{to}: is the file that is read; choose another name")
    if models is not None:
        lora = resolved(lora, bases(lora, models))
    kind = None if dtype is None else getattr(torch, dtype)
    tell(write_lora(lora, to, layout, rank=rank, dtype=kind), console)  # type: ignore[arg-type]


@app.command()
def main(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file, or its folder.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Without it, say what IN changes.")
    ] = None,
    layout: Annotated[str, typer.Option(help=", ".join(get_args(LayoutName)))] = "diffusers",
    model: Annotated[
        str | None,
        typer.Option(help="Bundled name or folder: for sizes, ‖W‖, and what needs base weights."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="No rank above this one (SVD): loses something.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=", ".join(DTYPES))] = None,
) -> None:
    """Convert a LoRA, or look at it."""
    try:
        convert(source, to, layout, model, rank, dtype)
    except EngineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(cli.REFUSED) from None


if __name__ == "__main__":
    app()
