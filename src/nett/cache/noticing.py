"""What a layer under a policy does at attention: which slots a query may see and how often one counts, and what it notes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from nett.cache import expecting
from nett.cache.attention import come, mass, weights

if TYPE_CHECKING:
    from nett.cache.policy import Policy
    from nett.cache.watching import Coming


class Noticing(ABC):
    """Attention's side of :class:`nett.cache.layer.PolicyLayer`, whose fields are told there."""

    policy: Policy
    keys: Any
    values: Any
    valid: Any
    sizes: Any
    mass: Any
    reach: Any
    at: Any
    queries: Any
    there: Any
    counts: Any
    asked: expecting.Sums | None
    tokens: Any
    given: Coming | None
    scaling: float | None
    seen: int
    done: bool

    @abstractmethod
    def shrink(self) -> None: ...

    @abstractmethod
    def _code(self) -> None: ...

    @abstractmethod
    def _pack(self) -> None: ...

    @abstractmethod
    def _come_with(self, name: str, shape: Any, device: Any) -> Any: ...

    @property
    @abstractmethod
    def held(self) -> int: ...

    def comes(self, coming: Coming) -> None:
        """What is given to attention now, before its keys and values are given to this; told where it is asked for."""
        self.given = coming

    @property
    def plain(self) -> bool:
        """Whether every token is held as it came, so that attention is the model's own."""
        return self.sizes is None and self.there is None and self.held == self.seen

    def bias(self, query: Any, mask: Any) -> Any:
        """What is added to the logits ``[b, 1 or hq, q, m]``: the least number there is where a query may not look, the
        logarithm of a slot's size where slots stand for several tokens; None where nothing is."""
        import torch

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
        groups = query.shape[1] // self.keys.shape[1]
        if self.there is not None:
            mine = self.there.repeat_interleave(groups, 1)[:, :, None]
            whole = mine.expand(-1, -1, count, -1) if allowed is None else allowed[:, None] & mine
            return query.new_zeros(whole.shape).masked_fill_(~whole, least)
        if self.sizes is None:
            if allowed is None:
                return None
            return query.new_zeros(allowed.shape).masked_fill_(~allowed, least)[:, None]
        bias = self.sizes.log().to(query.dtype).repeat_interleave(groups, 1)[:, :, None].expand(-1, -1, count, -1)
        return bias if allowed is None else bias.masked_fill(~allowed[:, None], least)

    def fuses(self, query: Any, mask: Any) -> bool:
        """Whether attention and what it looks at are computed together: of several tokens, none of them padding, after
        which the cache is made smaller. (Where it is not, attention is the model's own to the bit.)"""
        if "mass" not in self.policy.watches or self.done or query.shape[2] == 1:
            return False
        if (
            self.valid is not None
            or self.sizes is not None
            or self.there is not None
            or come(mask, query.shape[2], len(query)) is not None
        ):
            return False
        return self.policy.due(self, int(self.keys.shape[-2]), self.seen)

    def attended(self, query: Any, mask: Any, scaling: float | None, noted: Any = None) -> None:
        """After attention: note what the policy wants to know, and make the cache smaller where it is due. noted: what
        these queries looked at ``[b, h, m]``, where that is known already."""
        import torch

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
            self._watch(query, mask, scaling, noted)
        if policy.expects and not self.done:
            self._expect(query, coming)
        if policy.codes:
            self._code()
        else:
            self.shrink()
        if policy.when == "prefill" and count > 1:  # nothing will be asked again
            self.mass = self.reach = self.queries = self.at = self.asked = None
            self.done = True
        self.given = None
        self._pack()

    def _watch(self, query: Any, mask: Any, scaling: float | None, noted: Any) -> None:
        import torch

        policy, count, held = self.policy, int(query.shape[2]), int(self.keys.shape[-2])
        if "mass" in policy.watches:
            found = self._mass(query, mask, scaling) if noted is None else noted
            self.mass = found if self.mass is None else self.mass + found
        if "reach" in policy.watches:
            more = torch.arange(count, 0, -1, device=query.device).float()
            new = torch.cat([more.new_full((held - count,), float(count)), more])
            self.reach = (0 if self.reach is None else self.reach) + new.expand(self.keys.shape[:3])
        if policy.looks_back:
            self.scaling = scaling
            if self.at is None:
                self.at = self._come_with("at", self.keys.shape[:3], query.device)
            past = query if self.queries is None else torch.cat([self.queries, query], 2)
            self.queries = past[:, :, -policy.window :].clone()  # a view would hold the whole prompt

    def _mass(self, query: Any, mask: Any, scaling: float | None) -> Any:
        """What these queries look at ``[b, h, m]``."""
        coming, count, held = come(mask, int(query.shape[2]), len(query)), int(query.shape[2]), int(self.keys.shape[-2])
        if self.valid is None and coming is None and self.sizes is None and self.there is None:
            return mass(query, self.keys, scaling)
        valid, self.valid = self.valid, None if self.valid is None else self.valid[:, : held - count]
        bias = self.bias(query, mask)
        self.valid = valid
        found = weights(query, self.keys, bias, scaling)
        if coming is not None:  # padding asks for nothing
            found = found * coming[:, None, :, None]
        return found.sum(2)

    def _expect(self, query: Any, coming: Any) -> None:
        """Add up queries as they were before rotation."""
        assert self.given is not None
        count = int(query.shape[2])
        before = self.seen - count
        if self.tokens is not None:
            before = self.tokens - (count if coming is None else coming.sum(-1))
        sinks = int(self.policy.parameters["sinks"])
        self.asked = expecting.added(self.asked, query, self.given, coming, before, sinks)

    def _expected(self, rows: slice) -> tuple[Any, Any]:
        """Mean ``[b, h, g, d]`` and covariance ``[b, h, g, d, d]`` of the queries to come."""
        assert self.asked is not None and self.given is not None
        heads = self.keys.shape[1]
        mean, spread = expecting.ahead_of(self.asked, self.given, int(self.policy.parameters["ahead"]))
        return mean[rows].unflatten(1, (heads, -1)), spread[rows].unflatten(1, (heads, -1))

    def _recent(self, rows: slice) -> Any:
        """Attention ``[b, h, w, m]`` of the last queries on the slots that are held now."""
        import torch

        asked, at = self.queries[rows], self.at[rows]
        groups = asked.shape[1] // at.shape[1]
        places = torch.arange(self.seen - asked.shape[2], self.seen, device=at.device).float()
        blind = at[:, :, None] > places[:, None]
        if self.valid is not None:
            blind = blind | ~self.valid[rows][:, None, None]
        if self.there is not None:
            blind = blind | ~self.there[rows][:, :, None]
        bias = asked.new_zeros(blind.shape).masked_fill_(blind, torch.finfo(asked.dtype).min)
        if self.sizes is not None:
            bias = bias + self.sizes[rows].log()[:, :, None]
        found = weights(asked, self.keys[rows], bias.repeat_interleave(groups, 1), self.scaling)
        return found.masked_fill_(blind.all(-1, keepdim=True), 0.0)  # what it could see is gone, or it is padding
