"""A search task whose rewards are exact: make a number from others, each used once, one operation a step (countdown, 24).

The policy is a noisy one: it has its preferences in every situation, as a language model has them, and steps from which the
target can still be reached are a little more likely; it says one step in several ways, and sometimes only what is left. The
reward knows whether the target can still be reached, and may be given noise. The answer of a branch is what it came to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import final

import numpy as np

from nett.cache.search_tree import Node, Step

Left = tuple[int, ...]  # numbers that are still to be used, ascending
Move = tuple[str, Left]  # said as "a + b = c", and what is left after it


def moves(left: Left) -> list[Move]:
    """All operations on two of the numbers whose result is a whole number above 0; each once."""
    found: dict[Move, None] = {}
    for i in range(len(left)):
        for j in range(i):
            low, high = left[j], left[i]
            rest = (*left[:j], *left[j + 1 : i], *left[i + 1 :])
            made = [("+", high + low), ("*", high * low)]
            made += [("-", high - low)] * (high > low) + [("/", high // low)] * (low > 1 and high % low == 0)
            for sign, result in made:
                found[(f"{high} {sign} {low} = {result}", tuple(sorted((*rest, result))))] = None
    return list(found)


def count(text: str) -> int:
    """Tokens: words, numbers and signs."""
    return len(re.findall(r"\w+|[^\w\s]", text))


@final
class Countdown:
    """One problem with its policy (:meth:`generate`) and its reward.

    Args:
        numbers: to be used, each once.
        target: to be reached.
        skill: by how much the log odds of a step are larger where the target can be reached after it.
        focus: standard deviation of the policy's preferences among steps, in log odds: the larger, the more it repeats itself.
        talk: chance of a step that only says what is left.
        noise: standard deviation of what is added to the reward, the same for the same text.
        seed: of the preferences and of that noise.
    """

    def __init__(
        self, numbers: Sequence[int], target: int, *, skill: float = 1.0, focus: float = 2.0, talk: float = 0.3,
        noise: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.numbers, self.target = tuple(sorted(numbers)), target
        self.skill, self.focus, self.talk, self.noise, self.seed = skill, focus, talk, noise, seed
        self._choices: dict[Left, tuple[list[Move], np.ndarray]] = {}
        self._open: dict[Left, bool] = {}

    @property
    def prompt(self) -> Step:
        text = f"Use {' '.join(map(str, self.numbers))} once each to make {self.target}.\n"
        return Step(text, count(text), state=self.numbers)

    def within_reach(self, left: Left) -> bool:
        """Whether the target can still be made of what is left."""
        if left not in self._open:
            if len(left) == 1:
                self._open[left] = left[0] == self.target
            else:
                self._open[left] = any(self.within_reach(after) for _, after in moves(left))
        return self._open[left]

    def generate(self, node: Node, number: int, rng: np.random.Generator) -> list[Step]:
        """So many steps of the noisy policy."""
        left: Left = node.state if node.parent is not None else self.numbers
        return [self._step(left, rng) for _ in range(number)]

    def _step(self, left: Left, rng: np.random.Generator) -> Step:
        rest = " ".join(map(str, left))
        if rng.random() < self.talk:
            text = ("We have {} left.\n", "So {} are left.\n", "Now, {} remain.\n")[int(rng.integers(3))].format(rest)
            return Step(text, count(text), state=left)
        known, chances = self._policy(left)
        said, after = known[int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))]
        high, sign, low, _, result = said.split()
        if sign in "+*" and rng.random() < 0.5:
            said = f"{low} {sign} {high} = {result}"
        text = f"{said}, left {' '.join(map(str, after))}\n"
        done = len(after) == 1
        return Step(text, count(text), done=done, answer=str(after[0]) if done else None, state=after)

    def _policy(self, left: Left) -> tuple[list[Move], np.ndarray]:
        """The moves, and their chances summed up."""
        if left not in self._choices:
            known = moves(left)
            rng = np.random.default_rng([self.seed, self.target, *left])
            odds = self.focus * rng.standard_normal(len(known))
            odds += self.skill * np.array([self.within_reach(after) for _, after in known])
            self._choices[left] = known, np.cumsum(np.exp(odds - odds.max()))
        return self._choices[left]

    def reward(self, nodes: Sequence[Node]) -> list[float]:
        """1 where the target is within reach, else 0; with noise, cut to 0 and 1."""
        return [self._reward(node) for node in nodes]

    def _reward(self, node: Node) -> float:
        value = float(self.within_reach(node.state))
        if self.noise:
            digest = hashlib.blake2b(f"{self.seed}\n{node.text}".encode(), digest_size=8).digest()
            value += self.noise * float(np.random.default_rng(int.from_bytes(digest)).standard_normal())
        return min(1.0, max(0.0, value))


def problem(seed: int, number: int, count_of: int = 5) -> tuple[Left, int]:
    """The ``number``-th problem of a seed: numbers from 1 to 13, and a target from 10 to 99 that can be made of them."""
    rng = np.random.default_rng([seed, number])
    while True:
        numbers = tuple(sorted(int(n) for n in rng.integers(1, 14, count_of)))
        left: Left = numbers
        while len(left) > 1:
            after = moves(left)
            left = after[int(rng.integers(len(after)))][1]
        if 10 <= left[0] <= 99:
            return numbers, left[0]
