"""The bed of the weights room's benchmarks: SmolLM2-135M as it is packaged and moved off its grid, and prose for it.

    python benchmarks/weights/bed.py FOLDER

The packaged model is a dequantised Q4_1 file: its weights lie on a grid of 16 values in each block of 32, on which 4 bits
in groups of 32 lose nothing. ``moved`` is the same model after 200 steps of training of all weights in float32, so that
they lie on no grid. Both are float32. The texts are the chapters of Python's language reference, those held out whole
(``judging.txt``) apart from those that are calibrated on and were trained on (``calibration.txt``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import spend
from benchmarks.store.bed import once, save
from demo.model import find_model
from demo.texts import language_reference, passages
from demo.tuning import Course, fine_tune, load

from nett.core.tiny import write_llama

Say = Callable[[str], None]
COURSE = Course(steps=200, batch=1, length=128, rate=1e-4)


def build(folder: Path, say: Say) -> dict[str, Path]:
    """``packaged``, ``moved``: model folders; ``calibration``, ``judging``: texts. What is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    packaged, moved = folder / "packaged", folder / "moved"
    if not packaged.is_dir():
        say("writing the packaged model in float32")
        spend(["nett", "convert", str(find_model()), str(packaged), "--dtype", "float32", "--quiet"], folder)
    if not moved.is_dir():
        _move(packaged, moved, say)
    return {"packaged": packaged, "moved": moved, **_texts(folder)}


def build_pico(folder: Path) -> dict[str, Path]:
    """A Llama of some kilobytes in the places of both models."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "pico"
    once(made, lambda to: write_llama(to, layers=2, hidden=64, inter=128, vocab=256, dtype="F32"))
    return {"packaged": made, "moved": made, **_texts(folder)}


def _texts(folder: Path) -> dict[str, Path]:
    text = language_reference()
    files = {"calibration": folder / "calibration.txt", "judging": folder / "judging.txt"}
    for file, documents in zip(files.values(), (text.train, text.held_out), strict=True):
        file.write_text("\n\n".join(documents[name] for name in sorted(documents)), encoding="utf-8")
    return files


def _move(packaged: Path, moved: Path, say: Say) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(packaged), load(packaged)
    ids = passages(
        language_reference().train,
        lambda t: list(tokenizer(t, add_special_tokens=False).input_ids),
        count=COURSE.steps * COURSE.batch,
        length=COURSE.length,
        each=8,
        seed=COURSE.seed,
    )

    def tick(step: int, loss: float, seconds: float) -> None:
        if step % 20 == 19:
            say(f"training, step {step + 1} of {COURSE.steps}: loss {loss:.3f}, {seconds:.1f} s")

    fine_tune(model, torch.tensor(ids), COURSE, tick)
    save(model, moved, "float32", packaged)


if __name__ == "__main__":
    for name, path in build(Path(sys.argv[1]), print).items():
        print(f"{name}: {path}")
