"""Plain matrices: every answer as the numbers that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from nett.core.blocks import Linear
from nett.core.errors import Refused
from nett.weights.formats.base import Format
from nett.weights.protocol import Answer, Factors, Quantised, Stack, Tensor


@final
class Dense(Format):
    """``<layer>.weight``, and ``<layer>.bias`` where the answer has one."""

    name = "dense"

    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if isinstance(answer, Quantised):
            if answer.activations is not None:
                raise Refused("rounds activations, which dense weights cannot say", hint="--format compressed-tensors")
            return {linear.weight: answer.dense()}, {"bits": answer.bits}
        if isinstance(answer, Factors):
            found = {linear.weight: answer.dense()}
            return found | ({f"{linear.module}.bias": answer.bias} if answer.bias is not None else {}), {}
        if isinstance(answer, Stack):
            raise Refused(
                "is a stack, which is written as one", hint="Leave out --format; then: nett convert DIR/90MB OUT"
            )
        return {linear.weight: answer}, {}

    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        return tensors[linear.weight]
