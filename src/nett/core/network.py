"""A network as methods need it: its code, input for it, and labels where there are some, to be run with any weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused, UsageError


@final
class Network:
    """A torch module in evaluation mode, run with weights that are given as arrays.

    Args:
        module: its own weights do not matter; it is copied.
        inputs: ``[N, …]``, given to it in batches; floats, or token ids.
        labels: ``[N]`` class numbers, for losses.
    """

    def __init__(self, module: Any, inputs: Array, labels: Array | None = None, *, batch: int = 256) -> None:
        self.module = copy.deepcopy(module).eval()
        self.inputs, self.labels, self.batch = np.asarray(inputs), labels, batch
        if labels is not None and len(labels) != len(inputs):
            raise UsageError(f"there are {len(inputs)} inputs and {len(labels)} labels")

    def _state(self, tensors: Mapping[str, Array]) -> dict[str, Any]:
        import torch

        return {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}

    def _batches(self, like: Mapping[str, Array]) -> Iterator[tuple[Any, slice]]:
        import torch

        wide = any(t.dtype == np.float64 for t in like.values())
        for start in range(0, len(self.inputs), self.batch):
            rows = slice(start, start + self.batch)
            x = self.inputs[rows]
            yield torch.from_numpy(x.astype(np.float64 if wide else np.float32) if x.dtype.kind == "f" else x), rows

    def outputs(self, tensors: Mapping[str, Array]) -> Array:
        """``[N, …]``: what the network gives on all inputs with these weights; buffers that are missing are its own."""
        import torch

        state = self._state(tensors)
        with torch.no_grad():
            return np.concatenate(
                [torch.func.functional_call(self.module, state, (x,)).numpy() for x, _ in self._batches(tensors)]
            )

    def loss(self, tensors: Mapping[str, Array]) -> tuple[float, float]:
        """Mean cross entropy and accuracy on the labels; float64 sums."""
        if self.labels is None:
            raise UsageError("the data have no labels (y), which a loss needs")
        logits = self.outputs(tensors).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        right = shifted[np.arange(len(logits)), self.labels]
        cross = np.log(np.exp(shifted).sum(axis=1)) - right
        return float(cross.mean()), float((logits.argmax(axis=1) == self.labels).mean())

    def gradients(self, tensors: Mapping[str, Array], rows: Array) -> tuple[float, dict[str, Array]]:
        """Cross entropy on some rows, and its gradient in every weight."""
        import torch

        if self.labels is None:
            raise UsageError("the data have no labels (y), which a loss needs")
        state = self._state(tensors)
        trained = {n for n, _ in self.module.named_parameters() if n in state}
        for name in trained:
            state[name].requires_grad_()
        x, y = (
            torch.from_numpy(self.inputs[rows].astype(np.float32)),
            torch.from_numpy(self.labels[rows].astype(np.int64)),
        )
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(self.module, state, (x,)), y)
        names = sorted(trained)
        found = torch.autograd.grad(loss, [state[n] for n in names])
        return float(loss.detach()), {n: g.numpy() for n, g in zip(names, found, strict=True)}

    def taps(self, tensors: Mapping[str, Array], modules: Sequence[str]) -> Iterator[dict[str, tuple[Array, Array]]]:
        """Batch by batch: module -> (its input, its output)."""
        import torch

        state, seen = self._state(tensors), dict[str, tuple[Array, Array]]()
        known = dict(self.module.named_modules())

        def hook(name: str) -> Any:
            def look(_: Any, given: tuple[Any, ...], result: Any) -> None:
                seen[name] = (given[0].detach().numpy().copy(), result.detach().numpy().copy())

            return look

        handles = [known[name].register_forward_hook(hook(name)) for name in modules]
        try:
            for x, _ in self._batches(tensors):
                with torch.no_grad():  # not around the yield: two of these at a time would leave gradients off
                    torch.func.functional_call(self.module, state, (x,))
                yield dict(seen)
        finally:
            for handle in handles:
                handle.remove()

    @property
    def norms(self) -> list[str]:
        """The layers that keep running statistics."""
        import torch

        kept = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
        return [n for n, m in self.module.named_modules() if isinstance(m, kept) and m.track_running_stats]

    def restated(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The weights with the running statistics of BatchNorm estimated anew on the inputs (one pass, plain mean)."""
        import torch

        names = self.norms
        if not names:
            return dict(tensors)
        module = copy.deepcopy(self.module)
        known = dict(module.named_modules())
        state = self._state(tensors)
        for name in names:
            known[name].train()
            known[name].momentum = None
            for part, value in (("running_mean", 0.0), ("running_var", 1.0)):
                state[f"{name}.{part}"].fill_(value)
            state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
        with torch.no_grad():
            for x, _ in self._batches(tensors):
                torch.func.functional_call(module, state, (x,))
        return {n: state[n].numpy() for n in tensors}


def noise_for(module: Any, shape: Sequence[int], *, count: int = 1024, seed: int = 0) -> Network:
    """The network on normal noise of the shape of its input ``[batch, …]``, for what asks for any input at all."""
    inputs = np.random.default_rng(seed).normal(size=(count, *shape[1:]))
    return Network(module, inputs.astype(np.float32))


def read_data(file: Path) -> tuple[Array, Array | None]:
    """Inputs ``x`` and, where they are there, labels ``y`` of a NumPy archive; whole numbers stay whole numbers."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive)
            if "x" not in names:
                raise Refused(f"holds no array 'x', only {', '.join(names) or 'nothing'}", where=file, hint=_HINT)
            return archive["x"], archive["y"] if "y" in names else None
    except (OSError, ValueError) as error:
        raise Refused(f"is not a NumPy archive: {error}", where=file, hint=_HINT) from error


_HINT = "Write one with numpy.savez(FILE, x=inputs, y=labels)."
