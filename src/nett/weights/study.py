"""A study of one model: widths and calibration texts, each arm judged on the same questions, with paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=["P52"], title="Study of widths and calibration texts", kind="measure", grain="model", extra="models",
        command=True)  # fmt: skip
def study(
    assets: Sequence[str],
    *,
    calibration: str = "",
    eval: str = "",
    by: str = "gptq",
    bits: str = "8,4,3,2",
    group: Annotated[int, Between(-1)] = 0,
    symmetric: bool = True,
    draws: Annotated[int, Between(1, 100)] = 1,
    seed: Annotated[int, Between(0)] = 0,
    every: Annotated[int, Between(1, 10_000)] = 16,
    samples: Annotated[int, Between(1, 100_000)] = 32,
    judged: Annotated[int, Between(2, 100_000)] = 64,
    length: Annotated[int, Between(8, 1_000_000)] = 128,
    tasks: Path | None = None,
    most: Annotated[int, Between(1, 100_000)] = 50,
    new: Annotated[int, Between(1, 100_000)] = 64,
    run_code: bool = False,
    seconds: Annotated[int, Between(1, 3600)] = 5,
    memory: Annotated[int, Between(16, 1_000_000)] = 512,
    out: Path | None = None,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
) -> dict[str, Any]:
    """Quantise a model to several widths with several calibration texts, and test on the same questions what is lost.

    Formula: exact McNemar: p = P(|X - n/2| >= |gained - n/2|), X ~ Binomial(n = lost + gained, 1/2); Benjamini-Hochberg
    Args:
        calibration: texts to calibrate on: name=FILE,name=FILE; mixed is made of the others in equal parts, random of
            random tokens.
        eval: texts to judge by: name=FILE,name=FILE; none may be one that is calibrated on.
        by: the method that quantises: gptq, rtn or another of this room with bits.
        bits: widths, separated by commas.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers.
        symmetric: numbers around zero; otherwise each group has a zero point as well.
        draws: draws of windows from each text, each an arm of its own.
        seed: of the first draw; the same windows for all widths.
        every: of so many tokens one is a question (is the most likely token the one that follows?), since neighbours
            are not independent.
        samples: windows of calibration of an arm.
        judged: windows of each text that judges.
        length: tokens of a window.
        tasks: programming tasks: HumanEval or MBPP (.jsonl, .jsonl.gz, .json), or a .py file, whose functions are cut
            in half. What the model writes is parsed, and not run.
        most: tasks at most, evenly spread.
        new: tokens that the model writes for a task.
        run_code: run what the model writes against the task's tests: in a child process without network, files of its
            own only, and limits on time, memory and processes; the report says which barriers stood.
        seconds: of processor time for a program.
        memory: megabytes for a program.
        out: folder for the report (study.html, study.json) and for what each arm answered; arms that are there are
            not done again.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
    When to use: to choose a width and a calibration text for one model and its use, before it is quantised for good.
    When not: for a ranking of methods: nett weights frontier.
    Cost: the whole model in float32 in memory; an arm costs a quantisation and a reading of the texts.
    Source: P52's protocol: pass@1 by pairs, exact McNemar tests, odds ratios, Benjamini-Hochberg over all comparisons;
        there AQLM quantises, here a method of this room.
    """
    from nett.core.staging import put_file
    from nett.weights.study_page import page_of, words_of
    from nett.weights.studying import study_of

    if len(assets) != 1:
        raise UsageError("name one model", where="weights/study", hint="nett weights study MODEL --eval code=FILE")
    told = study_of(
        assets[0], calibration=calibration, eval=eval, by=by, bits=bits, group=group, symmetric=symmetric, draws=draws,
        seed=seed, every=every, samples=samples, judged=judged, length=length, tasks=tasks, most=most, new=new,
        run_code=run_code, seconds=seconds, memory=memory << 20, out=out, device=device, threads=threads,
    )  # fmt: skip
    if out is not None:
        from json import dumps

        out.mkdir(parents=True, exist_ok=True)
        put_file(out / "study.json", (dumps(told, indent=1) + "\n").encode())
        page_of(told).write(out / "study.html")
    return told | {"say": words_of(told)}
