"""Policies of this room as presses of kvpress, for who uses that toolkit. Importing this needs kvpress, which needs a
transformers below 5.3: ``pip install kvpress "transformers<5.3"`` in an environment of its own.

``with PolicyPress(nett.cache.kvmerger(), 0.5)(model): model(ids, past_key_values=cache)``. A press acts once, after a prompt
without padding, and holds nothing beside keys and values: slots that stand for several tokens count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nett.cache.expecting import rotated
from nett.cache.layer import layer_class
from nett.cache.policy import Policy
from nett.core.errors import Refused, UsageError

try:
    from kvpress import BasePress
except ImportError as error:
    raise ImportError(
        "nett.cache.presses needs the Python package 'kvpress', which is not installed here. It needs transformers below 5.3,"
        " so give it an environment of its own: pip install kvpress 'transformers<5.3'. Without it: nett.cache.kvmerger(…)"
        ".on(model)."
    ) from error


@dataclass
class PolicyPress(BasePress):  # type: ignore[misc] # kvpress has no types here
    """What a policy of this room makes of a prompt's keys and values.

    Args:
        policy: one that drops or merges slots; its own budget is not used.
        compression_ratio: share of the slots that go, as kvpress counts: ``int(n * (1 - ratio))`` stay.
    """

    policy: Policy
    compression_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.compression_ratio < 1:
            raise UsageError(
                f"compression_ratio = {self.compression_ratio} is out of range: 0 <= compression_ratio < 1"
            )
        card = self.policy.card
        if "keep" not in card.operands or self.policy.told:
            raise Refused(
                "holds codes, or asks for more than keys, values and queries, and cannot be a press", where=card.key
            )

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """keys, values ``[b, h, n, d]`` -> ``[b, h, int(n * (1 - ratio)), d]``."""
        from kvpress.utils import get_prerope_query_states

        kept = int(keys.shape[2] * (1 - self.compression_ratio))
        if kept >= keys.shape[2]:
            return keys, values
        if kept < 1:
            raise Refused(f"{keys.shape[2]} tokens at a ratio of {self.compression_ratio} leave none")
        card, parameters = self.policy.card, self.policy.parameters
        layer = layer_class()(Policy(card, parameters, budget=f"{kept}tok", when="prefill"), 1)
        layer.update(keys, values)
        query = rotated(module, get_prerope_query_states(module, hidden_states), *kwargs["position_embeddings"])
        layer.attended(query, None, getattr(module, "scaling", None))
        return layer.keys, layer.values
