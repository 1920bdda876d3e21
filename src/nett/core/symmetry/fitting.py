"""A torch module with tensors of other widths in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.errors import Refused


def fitted(module: Any, tensors: Mapping[str, Any]) -> Any:
    """A copy of ``module`` that holds ``tensors`` (arrays or torch tensors, by the names of its state dict).

    Layers of torch.nn are told their new widths; tensors that are shared stay shared, and types and devices stay.
    The module's own code may still count on old widths: what it does then is its own error, so try it on an example.
    Raises Refused for a name that the module has not, and for a layer that cannot have such a shape.
    """
    import copy

    import torch

    made = copy.deepcopy(module)
    stored = made.state_dict(keep_vars=True)
    for name in tensors:
        if name not in stored:
            raise Refused(f"the module has no tensor {name!r}", where=type(module).__name__)
    new: dict[int, Any] = {}  # by id of the old tensor: shared ones become one
    with torch.no_grad():
        for prefix, layer in made.named_modules():
            changed = False
            for kind in (layer._parameters, layer._buffers):
                for local, old in list(kind.items()):
                    full = f"{prefix}.{local}" if prefix else local
                    if old is None or full not in tensors:
                        continue
                    if id(old) not in new:
                        value = torch.as_tensor(tensors[full]).detach().clone().to(old.dtype).to(old.device)
                        if isinstance(old, torch.nn.Parameter):
                            value = torch.nn.Parameter(value, requires_grad=old.requires_grad)
                        new[id(old)] = value
                        new[-id(old)] = old  # kept alive, or its id could be another's
                    changed = changed or tuple(new[id(old)].shape) != tuple(old.shape)
                    kind[local] = new[id(old)]
            if changed:
                _tell(prefix, layer)
    return made


def _tell(name: str, layer: Any) -> None:
    """Set the widths that a layer of torch.nn (or transformers' Conv1D) keeps beside its weights."""
    from torch import nn

    weight: Any = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.groups == layer.in_channels > 1:  # a kernel for each channel
            each = layer.out_channels // layer.in_channels
            if weight.shape[0] % each:
                raise Refused(f"{weight.shape[0]} kernels are not {each} for each channel", where=name)
            layer.groups = weight.shape[0] // each
        layer.in_channels, layer.out_channels = weight.shape[1] * layer.groups, weight.shape[0]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(weight)
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        held = next(t for t in (weight, layer.running_mean) if t is not None)
        layer.num_features = len(held)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
    elif type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # transformers': inputs first
        layer.nx, layer.nf = weight.shape
