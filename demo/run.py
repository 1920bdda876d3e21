"""``make demo``: a real model is scanned, converted, tuned twice, merged, restored, measured and verified."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from demo.console import QUIET, Console, DemoFailed
from demo.page import page
from demo.quality import gain, measure_model
from demo.story import Story
from demo.texts import Text, language_reference, passages, python_sources
from demo.tuning import Course

ROOT = Path(__file__).resolve().parent.parent
MARK = ".nett-demo"  # lies in a folder that the demo made, and may therefore make anew
NEEDED = 3_000_000_000  # bytes of disk
SEED = 1  # of the held-out passages


@final
@dataclass(frozen=True)
class Setting:
    """What may be changed to try the demo on something small."""

    model: Path
    folder: Path
    course: Course = field(default_factory=Course)
    passages: int = 16  # held out, of each text
    length: int = 128  # tokens of a passage
    needed: int = NEEDED


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 if it shows what it promises, 1 with one message if not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="another GGUF file")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out")
    given = parser.parse_args(arguments)
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")
    try:
        from demo.model import find_model

        run(Setting(given.model or find_model(), given.out))
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe demo was interrupted; make demo starts it anew.", file=sys.stderr)
        return 130
    return 0


def run(setting: Setting) -> Story:
    """All steps, in ``setting.folder``. Raises DemoFailed at the first thing that is not as promised."""
    folder = fresh(setting.folder, setting.needed)
    console = Console(folder)
    texts = [python_sources(), language_reference()]
    story = Story(setting.model, texts, setting.course, setting.passages, setting.length, console.ran)
    console.say(f"nett demo: {setting.model.name}, {setting.model.stat().st_size:,} bytes, on {cores()} cores.")
    console.say(f"Commands run in {folder}; nett is {sys.executable.removesuffix('python')}nett.")
    gguf = folder / setting.model.name
    gguf.symlink_to(setting.model.resolve())

    console.step("What is redundant in it?")
    console.nett("scan", gguf, "--html", "scan.html")

    console.step("To a Hugging Face folder: exactly, and checked against transformers")
    console.nett("convert", gguf, "exact")
    with console.busy("transformers loads the GGUF file itself, to compare"):
        from demo.model import compare

        story.compared = compare(folder / "exact", gguf)
    console.say(f"  {story.compared.told}")
    console.nett("convert", "exact", "base", "--dtype", "bfloat16")

    console.step("Two fine-tunes on two real texts")
    measure = Measuring(console, setting, story)
    for text in texts:
        console.say(f"  {text.told}")
        tune(console, setting, story, text, measure)
    for model in ("base", *story.names):
        measure(model)
    for text in texts:
        console.say(f"  {gain(text.name, story.figures['base', text.name], story.figures[text.name, text.name])}")

    names = story.names
    console.step("What do base and fine-tunes share?")
    console.nett("scan", *names, "--base", "base", "--only", "closeness", "--html", "shared.html")

    console.step("One model for both tasks, and both tasks out of one file")
    console.nett("merge", "ties", "--base", "base", *names, "--density", "0.2", "--scale", "1.0", "--out", "ties")
    console.nett("merge", "tall_masks", "--base", "base", *names, "--mask-lambda", "0.4", "--out", "tall_masks")
    for name in names:
        console.nett("restore", "tall_masks", "--task", name, "--out", f"restored-{name}")

    console.step("What did it cost? Perplexity and KL to the base on held-out passages")
    for model in ("ties", *(f"restored-{n}" for n in names)):
        measure(model)
    for line in table_lines(story):
        console.say(f"  {line}")

    console.step("Is everything what its receipt says?")
    for out in story.outputs:
        console.nett("verify", out, most=1)
    story.receipts = {o: json.loads((folder / o / "nett.json").read_text(encoding="utf-8")) for o in story.outputs}
    story.taken = console.taken
    (folder / "figures.json").write_text(json.dumps(story.as_json(), indent=2, ensure_ascii=False) + "\n")
    report = page(story).write(folder / "report.html")
    console.say(f"\nDone in {story.took}. Figures: {console.shown(folder / 'figures.json')}. Report:")
    console.say(str(report))
    return story


def fresh(folder: Path, needed: int) -> Path:
    """An empty folder; what an earlier demo left in it is deleted, anything else is not."""
    folder = folder.absolute()
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file()):
            raise DemoFailed(f"{folder} exists and was not made by the demo; move it away")
        shutil.rmtree(folder)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise DemoFailed(f"{folder.parent} has {free:,} bytes free, the demo's models need {needed:,}")
    folder.mkdir()
    (folder / MARK).touch()
    return folder


def cores() -> int:
    return len(os.sched_getaffinity(0))


def tune(console: Console, setting: Setting, story: Story, text: Text, measure: Measuring) -> None:
    """Fine-tune the base on one text and save it under the text's name."""
    import torch

    from demo.tuning import fine_tune, load, save

    folder, course = console.folder, setting.course
    wanted = course.steps * course.batch
    ids = passages(text.train, measure.encode, count=wanted, length=course.length, each=2, seed=course.seed)
    losses = story.losses[text.name] = []
    began = time.monotonic()

    with console.busy(f"tuning on {text.name}") as note:

        def tick(step: int, loss: float, seconds: float) -> None:
            losses.append(loss)
            note(f"step {step + 1} of {course.steps}, loss {loss:.2f}, {seconds:.1f} s a step")

        model = load(folder / "base")
        fine_tune(model, torch.tensor(ids), course, tick)
        save(model, folder / text.name, folder / "base")
    console.say(
        f"  {text.name}: {course.steps} steps on {wanted * course.length:,} tokens in {time.monotonic() - began:.0f} s; "
        f"written to {text.name}/"
    )


@final
class Measuring:
    """Measures models of the folder on the held-out passages of all texts; the base must be the first."""

    def __init__(self, console: Console, setting: Setting, story: Story) -> None:
        from transformers import AutoTokenizer

        self._console, self._story, self._setting = console, story, setting
        self._tokenizer = AutoTokenizer.from_pretrained(console.folder / "base")
        self._ids: dict[str, Any] = {}
        self._reference: dict[str, list[Any]] = {t.name: [] for t in story.texts}

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def __call__(self, model: str) -> None:
        import torch

        from demo.tuning import load

        began = time.monotonic()
        with self._console.busy(f"measuring {model}") as note:
            done = 0

            def tick(passages: int) -> None:
                nonlocal done
                done += passages
                note(f"{done} of {self._setting.passages * len(self._story.texts)} passages")

            loaded = load(self._console.folder / model)
            for text in self._story.texts:
                ids = self._ids.get(text.name)
                if ids is None:
                    found = passages(text.held_out, self.encode, count=self._setting.passages,
                                     length=self._setting.length, each=2, seed=SEED)  # fmt: skip
                    ids = self._ids[text.name] = torch.tensor(found)
                self._story.figures[model, text.name] = measure_model(
                    loaded, ids, self._reference[text.name], tick=tick
                )
        self._console.say(f"  measured {model} in {time.monotonic() - began:.0f} s")


def table_lines(story: Story) -> list[str]:
    """The table of the report, for a terminal."""
    headers, rows = story.quality()
    cells = [headers, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
