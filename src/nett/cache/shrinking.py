"""How a layer under a policy is made smaller: what its kernel is shown, and what it answers put in place."""

from __future__ import annotations

from typing import Any

from nett.cache.merging import rows_of
from nett.cache.noticing import Noticing
from nett.cache.protocol import Coded, Kept, Merged

CARRIED = ("mass", "reach", "sizes", "at", "there")  # one number a slot, which moves with it


class Shrinking(Noticing):
    """The policy's side of :class:`nett.cache.layer.PolicyLayer`, whose fields are told there."""

    layers: int
    left: bool
    left_layers: int
    chunks: list[Coded]

    def shrink(self) -> None:
        """Where more is held than the budget allows, hold what the policy says; row by row where rows are not equally
        long."""
        if self.done:
            return
        if self.valid is None:
            if self.policy.due(self, self.slots, self.seen):
                self._take(self._asked(slice(None), self.seen))
            return
        seen, held = self.tokens.tolist(), self._slots_of_rows()
        due = [self.policy.due(self, h, s) for h, s in zip(held, seen, strict=True)]
        if any(due):
            rows = [slice(i, i + 1) for i in range(len(due))]
            self._take_rows([self._asked(r, s, self.valid[r][0], d) for r, s, d in zip(rows, seen, due, strict=True)])

    def _slots_of_rows(self) -> list[int]:
        """Of each row how many slots a head holds; the mean over its heads, rounded up, where these differ."""
        if self.there is not None:
            return [-(-n // self.there.shape[1]) for n in self.there.sum((1, 2)).tolist()]
        if self.valid is not None:
            return [int(n) for n in self.valid.sum(-1).tolist()]
        return [int(self.keys.shape[-2])] * len(self.keys)

    @property
    def slots(self) -> int:
        """Those of the row that holds most."""
        if self.counts is not None:
            return -(-int(self.counts.sum(-1).max()) // int(self.counts.shape[1]))
        return max(self._slots_of_rows()) if self.there is not None else self.held

    def _code(self) -> None:
        """Whole groups of the oldest tokens beyond the residual become codes."""
        group, residual = self.policy.parameters["group"], self.policy.parameters["residual"]
        over = (int(self.keys.shape[-2]) - residual) // group * group
        if over <= 0:
            return
        old = (t[:, :, :over].flatten(0, 1) for t in (self.keys, self.values))
        self.chunks.append(self.policy.kernel(*old, **self.policy.parameters))
        self.keys, self.values = (t[:, :, over:].contiguous() for t in (self.keys, self.values))

    def _asked(self, rows: slice, seen: int, valid: Any = None, due: bool = True) -> tuple[Any, Any]:
        """(what the kernel says of some rows, the slots that it was shown)."""
        import torch

        shown = torch.arange(self.keys.shape[-2], device=self.keys.device) if valid is None else valid.nonzero()[:, 0]
        heads = self.keys.shape[1]
        count = len(self.keys[rows])
        keep = self.policy.target(self, seen)
        mine = None if self.there is None else self.there[rows][:, :, shown].flatten(0, 1)
        if not due or keep >= (len(shown) if mine is None else mine.sum() / (count * heads)):
            index = torch.arange(len(shown), device=self.keys.device).expand(count * heads, -1)
            return Kept(index if mine is None else index.where(mine, -1)), shown

        expected = self._expected(rows) if self.policy.expects else ()

        def of(name: str) -> Any:
            if name == "keep":
                return keep
            if name == "heads":
                return heads
            if name == "there" and mine is None:
                return torch.ones(count * heads, len(shown), dtype=torch.bool, device=self.keys.device)
            if name in ("expected", "covariance"):
                return expected[name == "covariance"].flatten(0, 1)
            if name == "queries":
                found = self.queries[rows]
                return found.reshape(count * heads, -1, *found.shape[2:])
            if name == "recent":
                return self._recent(rows)[..., shown].flatten(0, 1)
            held = getattr(self, name)
            if held is None:  # sizes before anything was merged
                return torch.ones(count * heads, len(shown), device=self.keys.device)
            part = held[rows][:, :, shown].flatten(0, 1)
            return part.float() if name in ("keys", "values") else part

        return self.policy.kernel(*(of(n) for n in self.policy.operands), **self.policy.parameters), shown

    def _take(self, answer: tuple[Any, Any]) -> None:
        import torch

        told, shown = answer
        rows, heads, _, width = self.keys.shape
        if isinstance(told, Kept):
            kept = (told.index >= 0).reshape(rows, heads, -1)
            index = shown[told.index.clamp(min=0)].reshape(rows, heads, -1)
            flat = index.flatten(0, 1)
            self.keys, self.values = (
                rows_of(t.flatten(0, 1), flat).view(rows, heads, *flat.shape[1:], -1) for t in (self.keys, self.values)
            )
            for name in CARRIED:
                held = getattr(self, name)
                setattr(self, name, None if held is None else held.gather(2, index))
            if self.there is not None or not bool(kept.all()):
                self.there = kept if self.there is None else self.there & kept
            return
        assert isinstance(told, Merged)
        into = told.into.reshape(rows, heads, -1)
        slots = int(told.keys.shape[1])
        shape = (rows, heads, slots)
        for name in ("mass", "reach"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, _added(held[..., shown], into, slots))
        if self.at is not None:
            empty = torch.zeros(*shape[:2], slots + 1, device=into.device)
            at = self.at[..., shown]
            self.at = empty.scatter_reduce(-1, into.where(into >= 0, slots), at, "amax")[..., :slots]
        self.keys = told.keys.to(self.keys.dtype).reshape(*shape, width)
        self.values = told.values.to(self.values.dtype).reshape(*shape, -1)
        self.sizes = told.sizes.float().reshape(shape) if self.policy.counts_sizes else None

    def _take_rows(self, answers: list[tuple[Any, Any]]) -> None:
        """Rows of unequal length: each taken alone, then side by side, padded at the front."""
        import torch

        single: list[Any] = []
        for i, answer in enumerate(answers):
            kind: Any = type(self)
            one = kind(self.policy, self.layers, self.left, self.left_layers)
            one.is_initialized = True
            for name in ("keys", "values", *CARRIED):
                held = getattr(self, name)
                setattr(one, name, None if held is None else held[i : i + 1])
            one._take(answer)
            single.append(one)
        most = max(int(one.keys.shape[-2]) for one in single)
        empty = [most - int(one.keys.shape[-2]) for one in single]
        for name in ("keys", "values"):
            parts = [
                torch.nn.functional.pad(getattr(o, name), (0, 0, e, 0)) for o, e in zip(single, empty, strict=True)
            ]
            setattr(self, name, torch.cat(parts))
        for name in CARRIED:
            held = [getattr(o, name) for o in single]
            if all(h is None for h in held):
                setattr(self, name, None)
                continue
            kind = torch.bool if name == "there" else None
            ones = [torch.ones(o.keys.shape[:3], dtype=kind, device=o.keys.device) for o in single]  # before any went
            parts = [
                torch.nn.functional.pad(one if h is None else h, (e, 0), value=float(name == "sizes"))
                for h, one, e in zip(held, ones, empty, strict=True)
            ]
            setattr(self, name, torch.cat(parts))
        places = torch.arange(most, device=self.keys.device)
        valid = torch.stack([places >= e for e in empty])
        self.valid = None if not any(empty) else valid


def _added(held: Any, into: Any, slots: int) -> Any:
    """What old slots had, summed in the new ones they went to; what went nowhere is lost."""
    import torch

    total = torch.zeros(*held.shape[:-1], slots + 1, device=held.device, dtype=held.dtype)
    return total.scatter_add_(-1, into.where(into >= 0, slots), held)[..., :slots]
