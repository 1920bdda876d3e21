"""The cubic schedule of sparsity: fast while much is redundant, slow where little is left (P24, equation 1)."""

from __future__ import annotations

from nett.core.errors import UsageError


def cubic(step: int, *, start: int, steps: int, final: float, initial: float = 0.0, every: int = 1) -> float:
    """The sparsity at a training step: s = final + (initial - final) * (1 - (step - start) / steps)^3.

    Args:
        step: number of the training step, counted as ``start`` is.
        start: the step at which the sparsity begins to rise; ``initial`` up to and at it.
        steps: how many steps the rise takes; exactly ``final`` from ``start + steps`` on. 0 is one shot at ``start``.
        final: sparsity in the end, a part of 1; ``initial``: that before it. It may also fall.
        every: it changes only each ``every`` steps after ``start``, and stays between.

    Raises UsageError for a sparsity outside [0, 1], negative ``steps`` or ``every`` below 1.
    """
    for name, value in (("final", final), ("initial", initial)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} = {value} is no sparsity: 0 <= {name} <= 1")
    if steps < 0:
        raise UsageError(f"steps = {steps}: 0 <= steps")
    if every < 1:
        raise UsageError(f"every = {every}: 1 <= every")
    gone = step - start
    if gone >= steps:
        return final if gone >= 0 else initial
    if gone <= 0:
        return initial
    left = (1 - (gone - gone % every) / steps) ** 3
    return initial * left + final * (1 - left)  # so written, left = 1 gives initial to the bit


def changes(step: int, *, start: int, steps: int, every: int = 1) -> bool:
    """Whether :func:`cubic` takes a new value at this step: at ``start``, each ``every`` after it, and at its end."""
    gone = step - start
    return gone == steps or (0 <= gone < steps and gone % every == 0)
