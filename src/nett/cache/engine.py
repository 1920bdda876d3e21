"""The cache room's engine: policies for Python, and what a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, Card, With

_OPTIONS = ("budget", "every", "when")


def serve(card: Card, given: Mapping[str, Any]) -> Any:
    """``nett.cache.METHOD(budget=…, …)`` as a :class:`nett.cache.policy.Policy`."""
    from nett.cache.policy import Policy

    options = {k: v for k, v in given.items() if k in _OPTIONS and card.parameter(k) is None}
    return Policy(card, card.resolve({k: v for k, v in given.items() if k not in options}), **options)


def run(
    card: Card,
    assets: Sequence[str],
    given: Mapping[str, Any],
    *,
    budget: Annotated[str, With("keep")] = "0.5",
    every: Annotated[int, Between(0), With("keep")] = 0,
    when: Annotated[Literal["always", "prefill"], With("keep")] = "always",
    prompt_file: Path | None = None,
    tokens: Annotated[int, Between(1, 100_000)] = 64,
    text: Path | None = None,
    samples: Annotated[int, Between(1, 100_000)] = 16,
    context: Annotated[int, Between(1, 1_000_000)] = 128,
    follow: Annotated[int, Between(2, 100_000)] = 64,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Generate with a policy, and say what it holds and what it changes against the full cache.

    Args:
        budget: a share of the tokens (0.35), tokens (512tok) or bytes of all layers (3MB).
        every: tokens that come between two times that the cache is made smaller; 0 for a sixteenth of the budget.
        when: the cache is made smaller whenever it is over the budget, or once, after the prompt.
        prompt_file: text that is continued, with the full cache and with the policy.
        tokens: that are generated.
        text: text to judge by: its windows' first tokens are the prompt, and the following are given one by one.
        samples: windows of the text.
        context: tokens of a window's prompt.
        follow: tokens that follow it.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the findings.
        dry_run: say what would be held, and do nothing.
    """
    from nett.cache.showing import show

    if len(assets) != 1:
        raise UsageError("name one model", where=card.key, hint=f"nett cache {card.name} MODEL --prompt-file FILE")
    if prompt_file is None and text is None:
        raise UsageError("has nothing to continue", where=card.key, hint="Add --prompt-file FILE, --text FILE or both.")
    policy = serve(
        card, dict(given) | ({"budget": budget, "every": every, "when": when} if "keep" in card.operands else {})
    )
    return show(
        policy, assets[0], prompt_file=prompt_file, tokens=tokens, text=text, samples=samples, context=context,
        follow=follow, device=device, threads=threads, json=json, dry_run=dry_run,
    )  # fmt: skip


def make(
    card: Card,
    assets: Sequence[str],
    given: Mapping[str, Any],
    *,
    problems: Annotated[int, Between(1, 100_000), With("reward")] = 50,
    numbers: Annotated[int, Between(2, 6), With("reward")] = 5,
    skill: Annotated[float, Between(0, 100), With("reward")] = 1.0,
    noise: Annotated[float, Between(0, 100), With("reward")] = 0.5,
    json: Annotated[Path | None, With("reward")] = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Search solutions of a built-in task with exact rewards by the method and its rivals: accuracy against KV held.

    Args:
        problems: of the task: make a number from others, each used once, one operation a step.
        numbers: of each problem.
        skill: by how much the log odds of a step are larger where the target can be reached after it.
        noise: standard deviation of what is added to the exact rewards, which are 0 and 1.
        json: file for the findings.
        dry_run: say what would be searched, and do nothing.
    """
    from nett.cache.search_showing import show

    if "store" in card.operands:
        raise UsageError(
            "makes caches of prompts from Python",
            where=card.key,
            hint="On documents of yours: nett cache rag DOCS --question TEXT --model MODEL. Its parameters: nett show"
            f" {card.key}",
        )
    if assets:
        raise UsageError(
            f"searches its own task and takes no assets, but was given {assets[0]}",
            where=card.key,
            hint=f"For your own generator and reward, from Python: nett.cache.{card.name}(prompt, generate, reward, …)",
        )
    return show(
        card, card.resolve(given), problems=problems, numbers=numbers, skill=skill, noise=noise, json=json,
        dry_run=dry_run,
    )  # fmt: skip


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Nothing of this room is undone."""
    raise Refused("cannot be undone: a cache is made anew from its text", where=folder)


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Files by their hashes."""
    from nett.core import receipt as receipts

    return receipts.check_files(folder, receipt)
