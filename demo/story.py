"""Everything that one run of the demo found out, as it goes into the report and into ``figures.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from demo.console import Ran
from demo.model import Compared
from demo.quality import Measured, kept, paired, standard_error, table
from demo.texts import Text
from demo.tuning import Course


@final
@dataclass
class Story:
    """Filled step by step. ``figures``: by model and text. ``receipts``: by output folder."""

    model: Path
    texts: list[Text]
    course: Course
    passages: int
    length: int
    ran: list[Ran]
    compared: Compared | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[tuple[str, str], Measured] = field(default_factory=dict)
    receipts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    taken: Mapping[str, float] = field(default_factory=dict)  # seconds, CPU seconds, bytes of memory

    @property
    def names(self) -> list[str]:
        return [t.name for t in self.texts]

    @property
    def models(self) -> list[str]:
        """In the order in which they are measured and shown."""
        return ["base", *self.names, "ties", *(f"restored-{n}" for n in self.names)]

    @property
    def outputs(self) -> list[str]:
        """The folders that nett wrote, and that carry a receipt."""
        return ["exact", "base", "ties", "tall_masks", *(f"restored-{n}" for n in self.names)]

    def quality(self) -> tuple[list[str], list[list[str]]]:
        return table(self.figures, self.models, self.names)

    def gains(self) -> list[tuple[str, str, float, float, float]]:
        """For each model but the base and each text that it should know: model, text, how much lower its loss is
        than the base's with the standard error, and that as a share of what the text's own fine-tune gained."""
        rows = []
        for model in self.models[1:]:
            for text in self.names:
                if model == "ties" or text in model:
                    base, own, mine = (self.figures[m, text] for m in ("base", text, model))
                    rows.append((model, text, *paired(base, mine), kept(base, own, mine)))
        return rows

    @property
    def took(self) -> str:
        t = self.taken
        return (
            f"{t['seconds']:.0f} s, {t['cpu_seconds']:.0f} CPU seconds, {t['peak_memory_bytes'] / 1e9:.1f} GB of memory"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "versions": {n: version(n) for n in ("nett", "torch", "transformers", "numpy")}
            | {"python": platform.python_version()},
            "texts": [
                {"name": t.name, "about": t.about, "train": sorted(t.train), "held_out": sorted(t.held_out)}
                for t in self.texts
            ],
            "course": asdict(self.course),
            "held_out_passages": self.passages,
            "tokens_of_a_passage": self.length,
            "compared": asdict(self.compared) if self.compared else None,
            "training_loss": self.losses,
            "quality": [
                {
                    "model": model,
                    "text": text,
                    "perplexity": m.perplexity,
                    "perplexity_standard_error": m.perplexity_error,
                    "kl_to_base": float(m.kl.mean()),
                    "kl_standard_error": standard_error(m.kl),
                    "loss_by_passage": m.loss.tolist(),
                }
                for (model, text), m in self.figures.items()
            ],
            "commands": [{"command": r.command, "exit": r.code, "seconds": round(r.seconds, 2)} for r in self.ran],
            "taken": dict(self.taken),
        }
