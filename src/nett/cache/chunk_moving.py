"""Keys that were computed at one place of a text, as the model would compute them at another.

A chunk's keys are kept as they came to the cache, rotations included, so that at their own place they are used bit for bit.
Elsewhere they are rotated once, by the angle between the two places: out of the old rotation and into the new one, both by
the model's own module of rotations, joined in float64. Whether a model's keys can be moved so is seen on the model itself:
a text of one token has the same hidden states at any place, in every layer, so that its keys differ by their rotation alone.
"""

from __future__ import annotations

from typing import Any, final

from nett.cache.recording import attending
from nett.cache.watching import rotaries
from nett.core.errors import Refused

_FAR = 37  # the place at which it is tried
_WORDS = 8  # tokens that are tried


@final
class Mover:
    """Moves the keys of one model. ``styles``: of each layer, which channels are rotated together: ``half`` (a channel of
    the first half and one of the second), ``pairs`` (neighbours) or ``none`` (keys know no place).

    Raises:
        Refused: positions are not rotations that depend on the place alone, or no known rotation moves the keys.
    """

    def __init__(self, model: Any, where: str) -> None:
        found = rotaries(model)
        if len(found) != 1:
            raise Refused(
                f"{type(model).__name__} has {len(found)} modules of rotations: keys are moved by one", where=where
            )
        self.rotary = found[0]
        kind = str(getattr(self.rotary, "rope_type", "default"))
        if "dynamic" in kind or kind == "longrope":
            raise Refused(
                f"the rotations of {type(model).__name__} ({kind}) depend on how long a text is, so that stored keys fit none"
                " but texts of their own length",
                where=where,
            )
        self.device = model.device
        self.styles = self._tried(model, where)

    def turn(self, old: Any, new: Any) -> tuple[Any, Any]:
        """Cosines and sines ``[n, r]`` in float32 of the rotation from places ``old`` to ``new``, int ``[n]``."""
        import torch

        probe = torch.zeros(1, device=self.device)
        (c0, s0), (c1, s1) = (
            tuple(t[0].double() for t in self.rotary.forward(probe, places[None].to(self.device)))
            for places in (old, new)
        )
        norm = c0 * c0 + s0 * s0  # not 1 where the module scales attention by its rotations
        return ((c1 * c0 + s1 * s0) / norm).float(), ((s1 * c0 - c1 * s0) / norm).float()

    def moved(self, keys: Any, turn: tuple[Any, Any], layer: int) -> Any:
        """``keys`` ``[…, n, d]`` of a layer, rotated by a :meth:`turn`; channels beyond the rotated ones stay."""
        return _rotated(keys, *turn, self.styles[layer])

    def _tried(self, model: Any, where: str) -> list[str]:
        import torch
        from transformers import DynamicCache

        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.linspace(0, vocabulary - 1, _WORDS, device=model.device).long()[:, None]
        seen = []
        for place in (0, _FAR):
            cache = DynamicCache(config=model.config)
            at = torch.full_like(ids, place)
            with torch.no_grad(), attending(model):
                model(ids, position_ids=at, attention_mask=_itself(ids), past_key_values=cache)
            seen.append([layer.keys for layer in cache.layers])
        turn = self.turn(torch.tensor([0]), torch.tensor([_FAR]))
        styles = []
        for number, (here, there) in enumerate(zip(*seen, strict=True)):
            apart = {s: float((_rotated(here, *turn, s) - there).abs().max()) for s in ("none", "half", "pairs")}
            best = min(apart, key=lambda s: apart[s])
            if apart[best] > torch.finfo(there.dtype).eps ** 0.5 * float(there.abs().max()):
                raise Refused(
                    f"the keys of layer {number} of {type(model).__name__} are not those of another place, rotated: what is"
                    " stored could not be moved",
                    where=where,
                )
            styles.append(best)
        return styles


def _itself(ids: Any) -> Any:
    import torch

    return torch.ones(len(ids), 1, 1, 1, dtype=torch.bool, device=ids.device)


def _rotated(keys: Any, cos: Any, sin: Any, style: str) -> Any:
    import torch

    if style == "none":
        return keys
    width = cos.shape[-1]
    some, rest = keys[..., :width].float(), keys[..., width:]
    if style == "half":
        other = torch.cat((-some[..., width // 2 :], some[..., : width // 2]), -1)
    else:
        other = torch.stack((-some[..., 1::2], some[..., ::2]), -1).flatten(-2)
    turned = (some * cos + other * sin).to(keys.dtype)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
