"""A model whose memory can be changed while it runs: blocks of a stack come and go, nothing is loaded again (P32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from nett.core.blocks import open_skeleton
from nett.core.blocks.skeleton import put
from nett.core.receipt import read_receipt
from nett.weights.sign_linear import sign_linear
from nett.weights.sign_stack import open_stack, within


def stacked(
    folder: str | Path, *, budget: str | int | None = None, dense: bool = False, device: str = "cpu"
) -> Stacked:
    """The model that ``nett weights bitstack`` wrote to ``folder``, at a budget of bytes (``90MB``; all of it by default).

    ``dense``: every layer's matrix is kept composed as well, which takes the memory of the whole model and the time of a
    usual one; otherwise a layer is composed each time that it is run, and memory is the budget and one layer.
    Refused where there is no such folder, or a budget below the smallest.
    """
    folder = Path(folder)
    read_receipt(folder)
    return Stacked(folder, budget, dense, device)


@final
class Stacked:
    """``model`` is transformers' module, for inference in float32; call it, or this. Not safe to resize while it runs.

    ``smallest`` and ``largest``: bytes of the model with one block a layer, and with all.
    """

    def __init__(self, folder: Path, budget: str | int | None, dense: bool, device: str) -> None:
        import torch

        self.folder, self._dense = folder, dense
        self._stack = open_stack(folder)  # all blocks, as they lie on disk
        self.plan, self._ground = self._stack.plan, self._stack.ground
        steps = self.plan.steps(self._ground)
        self._steps, self.smallest, self.largest = steps, int(steps[0]), int(steps[-1])
        taken = within(self.plan, self._ground, self.largest if budget is None else budget, folder)
        skeleton = open_skeleton(self._stack, device)
        self.model = skeleton.model
        inside = {f"{layer.module}.weight" for layer in self.plan.layers}
        for name, _ in list(self.model.named_parameters()):
            if name not in inside and name in self._stack.tensors:
                put(self.model, name, skeleton.tensor(name).float())
        self.model.tie_weights()
        self.layers: list[Any] = []
        for layer in self.plan.layers:
            place, _, leaf = layer.module.rpartition(".")
            old = self.model.get_submodule(layer.module)
            made = sign_linear(self._stack.stored(layer.scale).to(device), old.bias, keep=dense)
            setattr(self.model.get_submodule(place), leaf, made)
            self.layers.append(made)
        self._device = torch.device(device)
        self._taken = -1
        self._take(taken)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are held, without what ``dense`` keeps."""
        return int(self._steps[self._taken])

    def resize(self, budget: str | int) -> int:
        """Take or drop blocks until the model fits the budget as well as it can. Returns its bytes; Refused, and left as it
        is, below the smallest."""
        self._take(within(self.plan, self._ground, budget, self.folder))
        return self.nbytes

    def _take(self, taken: int) -> None:
        for layer, module, count in zip(self.plan.layers, self.layers, self.plan.counts(taken), strict=True):
            have = len(module.terms)
            if count < have:
                del module.terms[count:]
            for block in range(have, count):
                module.terms.append(self._stack.term(layer, block, self._device))
            if count != have:
                module.changed()
        self._taken = taken

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.model(*given, **named)

    def close(self) -> None:
        """Give back the files; the model stays as it is."""
        self._stack.close()

    def __enter__(self) -> Stacked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
