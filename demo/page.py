"""The demo's report: one page, from what one run found out."""

from __future__ import annotations

from typing import Any

from demo.model import PACKAGE, PROMPTS
from demo.quality import paired
from demo.story import Story
from nett.core.report import Code, Page

_LINES = 30  # of a command's output; a scan lists every tensor
_ROUNDING = ("changed", "max_abs_error", "max_relative_error", "relative_l2")


def page(story: Story) -> Page:
    """The whole report. ``story`` must be complete."""
    texts = " and ".join(story.names)
    made = Page("nett demo", f"{story.model.name}, tuned on {texts}, merged, taken apart again, measured and verified")
    made.verdict(verdict(story), "good" if _proofs_kept(story) else "bad")
    made.contents()
    _quality(made, story)
    _bytes(made, story)
    _conversion(made, story)
    _training(made, story)
    _receipts(made, story)
    _commands(made, story)
    _method(made, story)
    versions = ", ".join(f"{k} {v}" for k, v in story.as_json()["versions"].items())
    made.footer = f"Made by make demo in {story.took}, with {versions}."
    return made


def verdict(story: Story) -> str:
    """What came out, in four sentences, good or bad."""
    parts = []
    for text in story.names:
        base, own = story.figures["base", text], story.figures[text, text]
        parts.append(f"on held-out {text} from {base.perplexity:.2f} to {own.perplexity:.2f}")
    shares = {m: [f"{100 * s:.0f} % ({t})" for model, t, _, _, s in story.gains() if model == m] for m in story.models}
    back = [share for m in story.models if m.startswith("restored") for share in shares[m]]
    kept = sum(r.get("proof") == "kept" for r in story.receipts.values())
    return (
        f"Each fine-tune lowered the perplexity of its text: {', '.join(parts)}. "
        f"Of what the fine-tunes gained, the one model merged with ties keeps {', '.join(shares['ties'])}; the tasks "
        f"restored from tall_masks keep {', '.join(back)}. "
        f"{kept} of {len(story.receipts)} receipts hold, checked again by nett verify."
    )


def _proofs_kept(story: Story) -> bool:
    return all(r.get("proof") == "kept" for r in story.receipts.values())


def _quality(made: Page, story: Story) -> None:
    made.heading("What came out")
    headers, rows = story.quality()
    tokens = f"{story.passages} passages of {story.length} tokens of each text"
    made.table(headers, rows)
    made.text(
        f"On {tokens}, from documents that no fine-tune has seen. ± is one standard error over the passages. All models "
        "are measured on the same passages, so that differences are far more certain than the figures themselves: see "
        "the next table. KL in nats a token, of the model's next-token probabilities from the base's.",
        dim=True,
    )
    models, series = story.models, {f"on {t}": [story.figures[m, t] for m in story.models] for t in story.names}
    made.grouped_bars(
        models, {k: [m.perplexity for m in v] for k, v in series.items()}, title="Perplexity", note="lower is better"
    )
    made.table(
        ["model", "text", "loss below the base's, nats a token", "share of the fine-tune's gain"],
        [
            [model, text, f"{better:.3f} ± {error:.3f}", f"{100 * share:.0f} %"]
            for model, text, better, error, share in story.gains()
        ],
        caption="Each on the texts that it should know, passage by passage against the base",
    )
    if note := _shared(story):
        made.text(note)
    made.grouped_bars(
        models[1:],
        {k: [float(m.kl.mean()) for m in v[1:]] for k, v in series.items()},
        title="KL divergence from the base",
        unit="nats",
        note="how far the model has moved; 0 is the base itself",
    )


def _shared(story: Story) -> str:
    """Why a merge may keep more than all: where each fine-tune also helps on the text it has not seen."""
    across = {
        (tuned, text): paired(story.figures["base", text], story.figures[tuned, text])[0]
        for tuned in story.names
        for text in story.names
        if tuned != text
    }
    if not any(share > 1 for *_, share in story.gains()) or min(across.values()) <= 0:
        return ""
    helped = ", ".join(f"{tuned} by {better:.3f} on {text}" for (tuned, text), better in across.items())
    return (
        "More than 100 % is no slip: each fine-tune also lowers the loss on the text that it has not seen "
        f"({helped} nats a token), and what is merged holds both. It is also further from the base, as the KL says."
    )


def _bytes(made: Page, story: Story) -> None:
    made.heading("Bytes")
    tall, ties = story.receipts["tall_masks"], story.receipts["ties"]
    tuned = [i for i in tall["inputs"] if i["role"] == "model"]
    separate = sum(i["bytes"] for i in tuned)
    rows: list[tuple[str, Any, str]] = [(f"fine-tune {i['name']}", i["bytes"], "") for i in tuned]
    rows += [
        ("all fine-tunes", separate, "what is there without nett, beside the base"),
        ("tall_masks", tall["bytes_after"], f"all tasks, approximate; {_change(tall['bytes_after'], separate)}"),
        ("ties", ties["bytes_after"], f"one model for all; {_change(ties['bytes_after'], separate)}"),
    ]
    made.bars(rows, title="On disk, beside the base", unit="bytes")
    made.table(
        ["task", "restored: relative L2 to its fine-tune", "ones in its mask"],
        [[t["name"], t["relative_l2"], t["mask_ones"]] for t in tall["tasks"]],
    )


def _change(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "−")


def _conversion(made: Page, story: Story) -> None:
    made.heading("Conversion")
    if story.compared is not None:
        made.text(
            f"nett convert wrote the GGUF file as float32 in the folder exact. transformers loads the same GGUF file by "
            f"its own code: {story.compared.told}. The folder base is the same rounded to bfloat16, "
            "the type that the fine-tunes are kept in."
        )
    made.key_values({f"prompt {n}": Code(repr(p)) for n, p in enumerate(PROMPTS, 1)})
    rounded = story.receipts["base"].get("figures", {})
    made.key_values({f"rounding to bfloat16, {k.replace('_', ' ')}": rounded[k] for k in _ROUNDING if k in rounded})


def _training(made: Page, story: Story) -> None:
    made.heading("Fine-tunes")
    for text in story.texts:
        made.text(f"{text.told}.")
    made.text(f"All weights are tuned, with AdamW: {story.course.told}. Saved as bfloat16 and measured as saved.")
    made.lines(
        {f"on {k}": [(i, v) for i, v in enumerate(losses, 1)] for k, losses in story.losses.items()},
        title="Loss of each step's passages",
        xlabel="step",
        ylabel="nats a token",
        note="each step sees other passages, so the lines are ragged",
    )


def _receipts(made: Page, story: Story) -> None:
    made.heading("Receipts")
    rows = []
    for folder, receipt in story.receipts.items():
        checks = receipt.get("checks", [])
        rows.append(
            [
                Code(folder),
                "/".join(str(receipt[k]) for k in ("room", "method") if receipt.get(k)),
                receipt.get("guarantee"),
                receipt.get("bytes_before"),
                receipt.get("bytes_after"),
                receipt.get("seconds"),
                receipt.get("peak_memory_bytes"),
                f"{'✓' if receipt.get('proof') == 'kept' else '✗'} {sum(c['ok'] for c in checks)} of {len(checks)}",
            ]
        )
    made.table(
        ["output", "made by", "guarantee", "bytes read", "bytes written", "seconds", "peak memory, bytes", "checks"],
        rows,
    )
    made.text("Each output has its own receipt (nett.json) and page (nett.html).", dim=True)


def _commands(made: Page, story: Story) -> None:
    made.heading("What was run")
    made.table(["command", "seconds"], [[Code(r.command), round(r.seconds, 1)] for r in story.ran])
    for ran in story.ran:
        more = [f"… {len(ran.lines) - _LINES} more lines"] if len(ran.lines) > _LINES else []
        made.code("\n".join([f"$ {ran.command}", *ran.lines[:_LINES], *more]))


def _method(made: Page, story: Story) -> None:
    made.heading("How to read this")
    made.text(
        f"The model is the one inside the Python package {PACKAGE}: small, quantised to 4 bits, and tuned to follow "
        "instructions, so that its perplexity on plain text is not that of the best model of its size. The fine-tunes "
        "are very short, on few tokens: they show that something was learnt and what a merge keeps of it, not how good "
        "such a fine-tune can become. About a fifth of the documents of each text, chosen by a hash of their names, are "
        "held out whole. The base was most likely trained on both texts; what it gains here is adaptation to their form."
    )
