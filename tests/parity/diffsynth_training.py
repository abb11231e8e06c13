"""DiffSynth-Studio's losses and gradients, from a process of its own.

    python -m tests.parity.diffsynth_training LIBRARY FOLDER

`FOLDER` has `asked.json`, the list of cases; `inputs.safetensors`, what all of them are told; and
`lora.safetensors`, in DiffSynth's layout. It receives a file for each case: the loss, and the
gradient of every weight and of the LoRA's factors, under DiffSynth's names.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.cases import DEV
from tests.parity.diffsynth_oracle import LIBRARY, ROOT, declare_torchvision_operators
from tests.parity.tiny import transformer_weights


def run(folder: Path, cases: Sequence[dict[str, Any]], inputs: dict[str, Tensor]) -> None:
    """This module as a process; CalledProcessError if it fails."""
    (folder / "asked.json").write_text(json.dumps(cases))
    save_file(inputs, folder / "inputs.safetensors")
    words = [sys.executable, "-m", "tests.parity.diffsynth_training", str(LIBRARY), str(folder)]
    subprocess.run(words, cwd=ROOT, check=True)


def main(library: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    sys.path.append(str(library))
    operators = declare_torchvision_operators()
    cases = json.loads((folder / "asked.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    factors = load_file(folder / "lora.safetensors")
    for case in cases:
        save_file(answered(case, inputs, factors), folder / f"{case['name']}.safetensors")
    del operators


def answered(
    case: dict[str, Any], inputs: dict[str, Tensor], factors: dict[str, Tensor]
) -> dict[str, Tensor]:
    from diffsynth.diffusion.loss import DirectDistillLoss, FlowMatchSFTLoss
    from diffsynth.diffusion.training_module import DiffusionTrainingModule
    from diffsynth.pipelines.flux_image import FluxImagePipeline
    from diffsynth.utils.state_dict_converters.flux_dit import FluxDiTStateDictConverter

    from tests.parity.diffsynth_models import build_transformer

    pipe = FluxImagePipeline(device="cpu", torch_dtype=getattr(torch, case["time_dtype"]))
    dit = build_transformer(DEV)
    dit.load_state_dict(FluxDiTStateDictConverter(transformer_weights(DEV)))
    module = DiffusionTrainingModule()
    if case["lora"]:
        targets = sorted({key.split(".")[-3] for key in factors if ".attn." in key})
        targets += ["ff_a.0", "ff_a.2", "ff_b.0", "ff_b.2", "proj_out", "norm.linear"]
        targets += ["norm1_a.linear", "norm1_b.linear", "to_qkv_mlp"]
        dit = module.add_lora_to_model(dit, targets, lora_rank=case["lora"])
        renamed = module.mapping_lora_state_dict(factors)
        missing, unexpected = dit.load_state_dict(renamed, strict=False)
        assert not unexpected, unexpected
        assert not [key for key in missing if "lora" in key], missing
    dit.requires_grad_(requires_grad=True)
    pipe.dit = dit
    pipe.scheduler.set_timesteps(1000, training=True)
    told: dict[str, Any] = {
        "input_latents": inputs["x0"][None],
        "prompt_emb": inputs["t5"][None],
        "pooled_prompt_emb": inputs["pooled"][None],
        "guidance": torch.tensor([case["guidance"]]),
        "text_ids": torch.zeros(1, len(inputs["t5"]), 3),
        "use_gradient_checkpointing": case["checkpointing"],
    }
    torch.manual_seed(case["seed"])
    if case["loss"] == "sft":
        loss = FlowMatchSFTLoss(pipe, **told, **case["boundaries"])
    else:
        noise = pipe.generate_noise(told["input_latents"].shape, seed=case["seed"])
        loss = DirectDistillLoss(
            pipe, **told, latents=noise, num_inference_steps=case["num_inference_steps"]
        )
    loss.backward()
    grads = {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().reshape(1), **grads}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
