"""One layer's cache under a policy: slots, what each stands for, and what attention told of them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from nett.cache.attention import come, weights
from nett.cache.packing import bytes_of, decoded
from nett.cache.protocol import Coded, Kept, Merged

if TYPE_CHECKING:
    from nett.cache.policy import Policy

_CARRIED = ("mass", "reach", "sizes", "at")  # one number a slot, which moves with it


@cache
def layer_class() -> Any:
    """A layer class of transformers' own kind; made on first use, since transformers is imported for it."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class PolicyLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
        """``keys``, ``values`` ``[b, h, m, d]``; ``seen``: tokens so far, which positions follow; ``valid`` bool ``[b, m]``
        or None where all are: slots that hold something."""

        def __init__(self, policy: Policy, layers: int) -> None:
            super().__init__()
            self.policy, self.layers = policy, layers
            self.seen = 0
            self._fresh()

        keys: Any
        values: Any

        def _fresh(self) -> None:
            self.valid: Any = None
            self.sizes: Any = None
            self.mass: Any = None
            self.reach: Any = None
            self.at: Any = None  # position of the last token in a slot, where queries are kept
            self.queries: Any = None  # [b, hq, w, d], of the last tokens
            self.scaling: float | None = None
            self.chunks: list[Coded] = []  # tokens that are held as codes, before those in keys and values
            self.coming = 0
            self.done = False  # with what is done once, after the prompt
            self.tokens: Any = None  # [b], without padding; None where they are ``seen``

        # -- what transformers asks ---------------------------------------------------------------------------

        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            self.coming = int(key_states.shape[-2])
            self.seen += self.coming
            keys, values = super().update(key_states, value_states)
            if self.chunks:
                keys, values = (
                    torch.cat([*(self._decoded(getattr(c, n)) for c in self.chunks), held], -2)
                    for n, held in (("keys", keys), ("values", values))
                )
            for name in _CARRIED:
                held = getattr(self, name)
                if held is not None:
                    new = self._come_with(name, key_states.shape[:3], key_states.device)
                    setattr(self, name, torch.cat([held, new], -1))
            keys = keys.view_as(keys)  # an object of its own, to carry the layer to where attention is computed
            keys.nett_layer = self
            return keys, values

        def _come_with(self, name: str, shape: Any, device: Any) -> Any:
            """What new slots carry: a size of one, their position, and no attention yet."""
            if name == "at":
                places = torch.arange(self.seen - shape[-1], self.seen, device=device, dtype=torch.float32)
                return places.expand(shape)
            return torch.full(shape, float(name == "sizes"), device=device)

        def get_seq_length(self) -> int:
            return self.seen

        @property
        def held(self) -> int:
            """Slots, of numbers and of codes."""
            here = int(self.keys.shape[-2]) if self.is_initialized and self.keys.numel() else 0
            return here + sum(c.keys.shape[1] for c in self.chunks)

        def _decoded(self, grid: Any) -> Any:
            return decoded(grid).reshape(*self.keys.shape[:2], -1, grid.shape[-1])

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.held + query_length, self.seen - self.held

        def crop(self, tokens_to_remove: int) -> None:
            if not self.plain or self.chunks:
                raise NotImplementedError("a cache that was made smaller cannot be cropped")
            super().crop(tokens_to_remove)
            self.seen += tokens_to_remove

        def reset(self) -> None:
            self.keys, self.values = None, None
            self.is_initialized, self.seen = False, 0
            self._fresh()

        def reorder_cache(self, beam_idx: Any) -> None:
            self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

        def batch_select_indices(self, indices: Any) -> None:
            self._rows(lambda t: t[indices])

        def _rows(self, change: Any) -> None:
            if self.chunks:
                raise NotImplementedError("rows of a cache that is held as codes cannot be moved")
            for name in ("keys", "values", "valid", "tokens", "queries", *_CARRIED):
                held = getattr(self, name)
                if held is not None and held.numel():
                    setattr(self, name, change(held))

        # -- attention ----------------------------------------------------------------------------------------

        @property
        def plain(self) -> bool:
            """Whether every token is held as it came, so that attention is the model's own."""
            return self.sizes is None and self.held == self.seen

        def bias(self, query: Any, mask: Any) -> Any:
            """What is added to the logits ``[b, 1 or hq, q, m]``: the least number there is where a query may not look, the
            logarithm of a slot's size where slots stand for several tokens; None where nothing is."""
            count, held = int(query.shape[2]), int(self.keys.shape[-2])
            allowed, least = None, torch.finfo(query.dtype).min  # not infinity: rows of padding see nothing at all
            if count > 1 or self.valid is not None:
                allowed = torch.ones(count, held, dtype=torch.bool, device=query.device).tril(held - count)[None]
                coming = come(mask, count, len(query))
                valid = self.valid
                if valid is not None or coming is not None:
                    past = valid if valid is not None else allowed.new_ones(len(query), held - count)
                    new = coming if coming is not None else allowed.new_ones(len(query), count)
                    seen = torch.cat([past[:, : held - count], new], -1)
                    allowed = allowed & seen[:, None]
            if self.sizes is None:
                if allowed is None:
                    return None
                return query.new_zeros(allowed.shape).masked_fill_(~allowed, least)[:, None]
            groups = query.shape[1] // self.keys.shape[1]
            bias = self.sizes.log().to(query.dtype).repeat_interleave(groups, 1)[:, :, None].expand(-1, -1, count, -1)
            return bias if allowed is None else bias.masked_fill(~allowed[:, None], least)

        def attended(self, query: Any, mask: Any, scaling: float | None) -> None:
            """After attention: note what the policy wants to know, and make the cache smaller where it is due."""
            policy, count = self.policy, int(query.shape[2])
            coming = come(mask, count, len(query))
            if self.valid is not None or coming is not None:
                new = coming.sum(-1) if coming is not None else count
                before = self.seen - count if self.tokens is None else self.tokens
                self.tokens = new + before
                held = int(self.keys.shape[-2])
                past = self.valid if self.valid is not None else query.new_ones(len(query), held - count).bool()
                new = coming if coming is not None else query.new_ones(len(query), count).bool()
                self.valid = torch.cat([past, new], -1)
            if policy.watches and not self.done:
                self._watch(query, mask, scaling)
            if policy.codes:
                self._code()
            else:
                self.shrink()
            if policy.when == "prefill" and count > 1:  # nothing will be asked again
                self.mass = self.reach = self.queries = self.at = None
                self.done = True

        def _watch(self, query: Any, mask: Any, scaling: float | None) -> None:
            policy, count, held = self.policy, int(query.shape[2]), int(self.keys.shape[-2])
            valid, self.valid = self.valid, None if self.valid is None else self.valid[:, : held - count]
            bias = self.bias(query, mask)
            self.valid = valid
            if bias is None and count > 1:
                bias = query.new_zeros(1, 1, count, held).masked_fill_(
                    ~torch.ones(count, held, dtype=torch.bool, device=query.device).tril(held - count),
                    torch.finfo(query.dtype).min,
                )
            if "mass" in policy.watches:
                found = weights(query, self.keys, bias, scaling)
                coming = come(mask, count, len(query))
                if coming is not None:  # padding asks for nothing
                    found = found * coming[:, None, :, None]
                self.mass = found.sum(2) if self.mass is None else self.mass + found.sum(2)
            if "reach" in policy.watches:
                more = torch.arange(count, 0, -1, device=query.device).float()
                new = torch.cat([more.new_full((held - count,), float(count)), more])
                self.reach = (0 if self.reach is None else self.reach) + new.expand(self.keys.shape[:3])
            if policy.looks_back:
                self.scaling = scaling
                if self.at is None:
                    self.at = self._come_with("at", self.keys.shape[:3], query.device)
                past = query if self.queries is None else torch.cat([self.queries, query], 2)
                self.queries = past[:, :, -policy.window :]

        # -- the policy ---------------------------------------------------------------------------------------

        def shrink(self) -> None:
            """Where more is held than the budget allows, hold what the policy says; row by row where rows are not equally
            long."""
            if self.done:
                return
            if self.valid is None:
                if self.policy.due(self, int(self.keys.shape[-2]), self.seen):
                    self._take(self._asked(slice(None), self.seen))
                return
            seen, held = self.tokens.tolist(), self.valid.sum(-1).tolist()
            due = [self.policy.due(self, h, s) for h, s in zip(held, seen, strict=True)]
            if any(due):
                rows = [slice(i, i + 1) for i in range(len(due))]
                self._take_rows(
                    [self._asked(r, s, self.valid[r][0], d) for r, s, d in zip(rows, seen, due, strict=True)]
                )

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
            shown = (
                torch.arange(self.keys.shape[-2], device=self.keys.device) if valid is None else valid.nonzero()[:, 0]
            )
            heads = self.keys.shape[1]
            count = len(self.keys[rows])
            keep = self.policy.target(self, seen)
            if not due or keep >= len(shown):
                index = torch.arange(len(shown), device=self.keys.device).expand(count * heads, -1)
                return Kept(index), shown

            def of(name: str) -> Any:
                if name == "keep":
                    return keep
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

        def _recent(self, rows: slice) -> Any:
            """Attention ``[b, h, w, m]`` of the last queries on the slots that are held now."""
            asked, at = self.queries[rows], self.at[rows]
            groups = asked.shape[1] // at.shape[1]
            places = torch.arange(self.seen - asked.shape[2], self.seen, device=at.device).float()
            blind = at[:, :, None] > places[:, None]
            if self.valid is not None:
                blind = blind | ~self.valid[rows][:, None, None]
            bias = asked.new_zeros(blind.shape).masked_fill_(blind, torch.finfo(asked.dtype).min)
            if self.sizes is not None:
                bias = bias + self.sizes[rows].log()[:, :, None]
            found = weights(asked, self.keys[rows], bias.repeat_interleave(groups, 1), self.scaling)
            return found.masked_fill_(blind.all(-1, keepdim=True), 0.0)  # what it could see is gone, or it is padding

        def _take(self, answer: tuple[Any, Any]) -> None:
            told, shown = answer
            rows, heads, _, width = self.keys.shape
            if isinstance(told, Kept):
                index = shown[told.index].reshape(rows, heads, -1)
                wide = index.unsqueeze(-1).expand(-1, -1, -1, width)
                self.keys, self.values = self.keys.gather(2, wide), self.values.gather(2, wide)
                for name in _CARRIED:
                    held = getattr(self, name)
                    setattr(self, name, None if held is None else held.gather(2, index))
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
            single = []
            for i, answer in enumerate(answers):
                one = PolicyLayer(self.policy, self.layers)
                one.is_initialized = True
                for name in ("keys", "values", *_CARRIED):
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
            for name in _CARRIED:
                held = [getattr(o, name) for o in single]
                if all(h is None for h in held):
                    setattr(self, name, None)
                    continue
                ones = [torch.ones(o.keys.shape[:3], device=o.keys.device) for o in single]  # sizes, before any merge
                parts = [
                    torch.nn.functional.pad(one if h is None else h, (e, 0), value=float(name == "sizes"))
                    for h, one, e in zip(held, ones, empty, strict=True)
                ]
                setattr(self, name, torch.cat(parts))
            places = torch.arange(most, device=self.keys.device)
            valid = torch.stack([places >= e for e in empty])
            self.valid = None if not any(empty) else valid

        @property
        def full_nbytes(self) -> int:
            """Bytes that all tokens' keys and values would take."""
            wide = self.keys.shape[-1] + self.values.shape[-1]
            return int(self.keys.shape[0] * self.keys.shape[1] * self.seen * wide * self.keys.element_size())

        @property
        def nbytes(self) -> int:
            """Bytes of all that is held."""
            held = [getattr(self, n) for n in ("keys", "values", "valid", "queries", *_CARRIED)]
            codes = sum(bytes_of(g) for c in self.chunks for g in (c.keys, c.values))
            return int(codes + sum(t.numel() * t.element_size() for t in held if t is not None))

    return PolicyLayer


def _added(held: Any, into: Any, slots: int) -> Any:
    """What old slots had, summed in the new ones they went to; what went nowhere is lost."""
    import torch

    total = torch.zeros(*held.shape[:-1], slots + 1, device=held.device, dtype=held.dtype)
    return total.scatter_add_(-1, into.where(into >= 0, slots), held)[..., :slots]
