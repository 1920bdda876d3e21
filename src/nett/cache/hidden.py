"""One layer's cache of a policy that holds hidden states: keys and values are made of them again at every step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, final

from nett.cache.attention import asked_length, come
from nett.cache.packing import bytes_of, decoded
from nett.cache.protocol import Hidden
from nett.cache.rematerialising import Bases, bases_of
from nett.core.errors import Refused

if TYPE_CHECKING:
    from nett.cache.policy import Policy
    from nett.cache.watching import Coming

_TRIED = 8  # tokens by which it is seen that keys and values are made of hidden states


@final
@dataclass
class Tokens:
    """What layers have in common: positions int32 ``[1 or b, n]``; valid bool ``[b, n]``, None where nothing is padding;
    of each row what the layer before reads from its codes ``[n, d]``, between that layer and the next only."""

    positions: Any = None
    valid: Any = None
    before: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.positions, self.valid) if t is not None)


@final
@dataclass
class Row:
    """Hidden states of one row without its padding: chunks of codes, then ``rest`` ``[n, d]`` as numbers."""

    rest: Any
    chunks: tuple[Hidden, ...] = ()
    coded: int = 0  # tokens in chunks

    @property
    def nbytes(self) -> int:
        grids = sum(bytes_of(g) for c in self.chunks for g in c.parts)
        return int(grids + self.rest.numel() * self.rest.element_size())


def read(chunk: Hidden, bases: Bases, before: Any) -> tuple[Any, Any]:
    """Hidden states ``[n, d]`` of a chunk of one row, for keys and for values; ``before`` ``[n, d]`` for differences."""
    numbers = [decoded(g)[0] for g in chunk.parts]
    if len(numbers) == 2:
        assert bases.keys is not None and bases.values is not None
        return numbers[0] @ bases.keys.T, numbers[1] @ bases.values.T
    found = numbers[0]
    if chunk.delta:
        found = before + (found if bases.both is None else found @ bases.both.T)
    return found, found


@cache
def hidden_layer_class() -> Any:
    """A layer class of transformers' own kind; made on first use, since transformers is imported for it."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class HiddenLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
        """``rows`` of hidden states; ``seen``: tokens so far, padding included."""

        plain = True  # every token is held, so that attention is the model's own

        def __init__(self, policy: Policy, layers: int, index: int, tokens: Tokens) -> None:
            super().__init__()
            self.policy, self.layers, self.index, self.tokens = policy, layers, index, tokens
            self._fresh()

        def _fresh(self) -> None:
            self.seen = 0
            self.rows: list[Row] = []
            self.bases: Any = None  # known when the first tokens come
            self.token_bytes = 0  # of one token's keys and values
            self.coming: Coming | None = None
            self.opened: list[tuple[Any, Any]] = []  # of each row what codes say, while attention is computed

        # -- what transformers asks ---------------------------------------------------------------------------

        def comes(self, coming: Coming) -> None:
            """What is given to attention now, before its keys and values are given to this."""
            self.coming = coming

        def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            if self.coming is None:
                raise Refused(
                    "was not told what came to attention",
                    where=self.policy.card.key,
                    hint="with policy.on(model): model(…, past_key_values=policy.cache(model))",
                )
            if not self.is_initialized:
                self._begin(key_states, value_states)
            if self.bases is None:
                self._know(key_states, value_states)
            self._open()
            keys, values = key_states, value_states
            if self.seen:
                held = self._made()
                keys, values = (torch.cat([h, n], -2) for h, n in zip(held, (keys, values), strict=True))
            self.seen += int(key_states.shape[-2])
            keys = keys.view_as(keys)  # an object of its own, to carry the layer to where attention is computed
            keys.nett_layer = self
            return keys, values

        def get_seq_length(self) -> int:
            return self.seen

        def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
            return self.seen + asked_length(query_length), 0

        @property
        def held(self) -> int:
            return self.seen

        def crop(self, tokens_to_remove: int) -> None:
            raise NotImplementedError("a cache that is held as codes cannot be cropped")

        def reset(self) -> None:
            self.is_initialized = False
            self.tokens.positions = self.tokens.valid = None
            self._fresh()

        def reorder_cache(self, beam_idx: Any) -> None:
            self.batch_select_indices(beam_idx)

        def batch_repeat_interleave(self, repeats: int) -> None:
            self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

        def batch_select_indices(self, indices: Any) -> None:
            picked = torch.arange(len(self.rows))[indices.cpu()]
            self.rows = [copy.copy(self.rows[i]) for i in picked.tolist()]
            if self.index == 0:
                for name in ("positions", "valid"):
                    held = getattr(self.tokens, name)
                    if held is not None and len(held) > 1:
                        setattr(self.tokens, name, held[picked.to(held.device)])

        # -- hidden states ------------------------------------------------------------------------------------

        def _begin(self, keys: Any, values: Any) -> None:
            assert self.coming is not None
            self.is_initialized = True
            if self.index == 0:
                self.tokens.positions = self.tokens.valid = None
            self.token_bytes = keys.shape[1] * (keys.shape[-1] + values.shape[-1]) * keys.element_size()
            new = self._what(self.coming)
            self.rows = [Row(new[i, :0].clone()) for i in range(len(new))]

        def _know(self, keys: Any, values: Any) -> None:
            """The directions that keys and values depend on; the same for all tokens."""
            assert self.coming is not None
            known = self.policy.bases.get(self.coming.way.module)
            if known is None:
                some = slice(0, _TRIED)
                positions = self.coming.positions
                known = bases_of(
                    self.coming.way, self.coming.hidden[:, some], None if positions is None else positions[:, some],
                    keys[:, :, some], values[:, :, some], f"{self.policy.card.key}: layer {self.index}",
                )  # fmt: skip
                self.policy.bases[self.coming.way.module] = known
            self.bases = Bases() if self._streams else known
            first = int(self.policy.parameters.get("first", 0))
            if first and self.index == first - 1:  # differences start from all its channels
                self.bases = Bases(both=self.bases.both)

        @property
        def _streams(self) -> bool:
            return self.policy.parameters.get("stream") == "residual"

        @property
        def _chained(self) -> bool:
            """Whether this layer holds differences."""
            return "before" in self.policy.operands and self.index >= int(self.policy.parameters["first"])

        def _what(self, coming: Coming) -> Any:
            if not self._streams:
                return coming.hidden
            if coming.stream is None:
                raise Refused(
                    "attention is not given what a norm gave, so that the stream before it is not known",
                    where=f"{self.policy.card.key}: layer {self.index}",
                    hint="stream=normed",
                )
            return coming.stream

        def _open(self) -> None:
            """Read the codes of all rows; what the layer before read of tokens that became codes since is left for them."""
            self.opened = []
            for i, row in enumerate(self.rows):
                before, at, parts = self.tokens.before[i] if self._chained else None, 0, []
                for chunk in row.chunks:
                    count = chunk.parts[0].shape[1]
                    parts.append(read(chunk, self.bases, None if before is None else before[at : at + count]))
                    at += count
                pairs = list(zip(*parts, strict=True)) if parts else [(row.rest[:0],)] * 2
                self.opened.append((torch.cat(pairs[0]), torch.cat(pairs[1])))

        def _made(self) -> tuple[Any, Any]:
            """Keys and values of all tokens that are held; those of padding are of zeros."""
            assert self.coming is not None
            positions, valid = self.tokens.positions, self.tokens.valid
            positions = None if positions is None else positions[:, : self.seen]
            hidden = []
            for which in range(2 if self.bases.keys is not None else 1):
                rows = [torch.cat([o[which], r.rest]) for o, r in zip(self.opened, self.rows, strict=True)]
                if valid is None:
                    found = torch.stack(rows)
                else:
                    found = rows[0].new_zeros(len(rows), self.seen, rows[0].shape[-1])
                    for i, row in enumerate(rows):
                        found[i, valid[i, : self.seen]] = row
                hidden.append(self.coming.norm.forward(found) if self._streams else found)
            keys, values = self.coming.way(hidden[0], positions)
            if len(hidden) == 2:
                values = self.coming.way(hidden[1], positions)[1]
            return keys, values

        def attended(self, query: Any, mask: Any, scaling: float | None) -> None:
            """After attention: hold what came, and code what is old enough."""
            assert self.coming is not None
            new, count = self._what(self.coming), int(query.shape[2])
            valid = come(mask, count, len(query))
            if self.index == 0:
                self._note(valid, count)
            if not self._chained:
                self.tokens.before = []
            for i, row in enumerate(self.rows):
                row.rest = torch.cat([row.rest, new[i] if valid is None else new[i][valid[i]]])
                found = self._code(row, self.opened[i][0], self.tokens.before[i] if self._chained else None)
                if self._chained:
                    self.tokens.before[i] = found
                else:
                    self.tokens.before.append(found)
            if self.index == self.layers - 1 or "before" not in self.policy.operands:
                self.tokens.before = []
            self.coming, self.opened = None, []

        def _note(self, valid: Any, count: int) -> None:
            tokens, rows, before = self.tokens, len(self.rows), self.seen - count
            assert self.coming is not None
            new = self.coming.positions
            if new is not None:
                new = new.to(torch.int32)
                past = tokens.positions if tokens.positions is not None else new[:, :0]
                if len(past) != len(new):
                    past, new = past.expand(rows, -1), new.expand(rows, -1)
                tokens.positions = torch.cat([past, new], -1)
            if valid is not None or tokens.valid is not None:
                ones = torch.ones(rows, self.seen, dtype=torch.bool, device=self.rows[0].rest.device)
                past = ones[:, :before] if tokens.valid is None else tokens.valid
                tokens.valid = torch.cat([past, ones[:, before:] if valid is None else valid], -1)

        def _code(self, row: Row, opened: Any, before: Any) -> Any:
            """Whole groups of the oldest tokens beyond the residual become codes. Returns all that codes say ``[n, d]``."""
            parameters = self.policy.parameters
            over = (len(row.rest) - parameters["residual"]) // parameters["group"] * parameters["group"]
            if over <= 0:
                return opened
            base = None if before is None else before[row.coded : row.coded + over]
            known = {
                "hidden": row.rest[None, :over],
                "before": None if base is None else base[None],
                "key_basis": self.bases.keys,
                "value_basis": self.bases.values,
                "basis": self.bases.both,
            }
            chunk = self.policy.kernel(*(known[n] for n in self.policy.operands), **parameters)
            row.chunks, row.coded, row.rest = (*row.chunks, chunk), row.coded + over, row.rest[over:].clone()
            return torch.cat([opened, read(chunk, self.bases, base)[0]])

        # -- to a file and back ---------------------------------------------------------------------------------

        def state(self) -> dict[str, Any]:
            """All that decides how it goes on; directions are the model's, and found again."""
            shared = {"positions": self.tokens.positions, "valid": self.tokens.valid} if self.index == 0 else {}
            return {"rows": self.rows, "seen": self.seen, "token_bytes": self.token_bytes} | shared

        def take_state(self, state: Mapping[str, Any]) -> None:
            self._fresh()
            self.is_initialized = True
            if self.index == 0:
                self.tokens.positions, self.tokens.valid = state["positions"], state["valid"]
            self.rows, self.seen, self.token_bytes = list(state["rows"]), state["seen"], state["token_bytes"]

        @property
        def full_nbytes(self) -> int:
            """Bytes that keys and values would take."""
            return len(self.rows) * self.seen * self.token_bytes

        @property
        def nbytes(self) -> int:
            """Bytes of all that is held; what layers have in common is the first one's."""
            return sum(row.nbytes for row in self.rows) + (self.tokens.nbytes if self.index == 0 else 0)

    return HiddenLayer
