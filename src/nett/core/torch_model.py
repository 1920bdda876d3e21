"""A checkpoint as a transformers model, tensor by tensor: the model is made without memory for its weights (torch's
meta device), and every weight takes its place as it is read.

transformers does the loading itself, since it knows what is renamed, tied, kept in float32 or put together from
several tensors; it is given what it takes from a safetensors file: names, and slices that are read when they are asked for.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core import expert_map, ragged
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.split import is_split
from nett.core.errors import Refused, missing_extra
from nett.core.fused import resolved_names
from nett.core.sidefiles import model_files


def model(source: Path | Checkpoint) -> Any:
    """The model of a Hugging Face folder, or of an open checkpoint."""
    transformers = transformers_here()
    if isinstance(source, Path):
        kind, config = kind_of(source)
        if not _marked(config) and not is_split(config):
            with quiet():
                return kind.from_pretrained(str(source))
        with open_checkpoint(source) as checkpoint:
            return model(checkpoint)
    with described(source) as folder:
        kind, config = kind_of(folder)
        if getattr(config, "quantization_config", None):
            raise Refused(
                "is quantised in a way that only transformers reads",
                where=source.path,
                hint=f"nett restore {source.path} --out DIR",
            )
        more = {}
        if (folder / "generation_config.json").is_file():
            more["generation_config"] = transformers.GenerationConfig.from_pretrained(str(folder))
        if _marked(config):
            return _ragged(kind, config, source)
        state = {name: Slice(source, name) for name in source.tensors}
        with quiet():
            made = kind.from_pretrained(None, config=config, state_dict=state, dtype="auto", **more)
    made.config.name_or_path = made.name_or_path = str(source.path)
    return made


def _marked(config: Any) -> bool:
    """Whether the config says of the model what transformers cannot build by itself."""
    return hasattr(config, ragged.MARK) or hasattr(config, expert_map.MARK)


def _ragged(kind: Any, config: Any, source: Checkpoint) -> Any:
    """A model whose blocks differ in width or in experts: built as the config says, fitted to its tensors, and filled
    with them."""
    import torch

    slices = {name: Slice(source, name) for name in source.tensors}
    kinds = {s.dtype for s in slices.values() if s.is_floating_point()}
    made = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    made.to(kinds.pop() if len(kinds) == 1 else torch.float32)
    if hasattr(config, ragged.MARK):
        ragged.fit_widths(made, source.tensors)
    if hasattr(config, expert_map.MARK):
        expert_map.fit_experts(made, getattr(config, expert_map.MARK), source.path)
    stored, fused = resolved_names(made, made.state_dict(), source.tensors)
    used = {*stored.values(), *(t for f in fused.values() for t in f.tensors)}
    strange = sorted(set(source.tensors) - used)
    values = {name: slices[tensor][...] for name, tensor in stored.items()}
    values |= {name: f.value(made, lambda tensor: slices[tensor][...]) for name, f in fused.items()}
    lost, _ = made.load_state_dict(values, strict=False)
    made.tie_weights()
    tied = set(getattr(made, "_tied_weights_keys", None) or ())
    if strange or set(lost) - tied:
        raise Refused(f"does not hold the tensors of its config: {(strange or lost)[0]!r}", where=source.path)
    made.config.name_or_path = made.name_or_path = str(source.path)
    return made.eval()


def tokenizer(source: Path | Checkpoint) -> Any:
    """The tokenizer of a Hugging Face folder, or of an open checkpoint."""
    automatic = transformers_here().AutoTokenizer
    if isinstance(source, Path):
        return automatic.from_pretrained(str(source))
    with described(source) as folder:
        return automatic.from_pretrained(str(folder))


def transformers_here() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise missing_extra("transformers", "models", "loading a model") from error


def kind_of(folder: Path) -> tuple[Any, Any]:
    """The class that the config names, or that of a causal language model; and the config."""
    transformers = transformers_here()
    config = transformers.AutoConfig.from_pretrained(str(folder))
    named = getattr(transformers, (config.architectures or [""])[0] or "-", None)
    return named or transformers.AutoModelForCausalLM, config


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bar and report: what it misses is read from its answer, or is an error."""
    transformers = transformers_here()
    words = transformers.utils.logging
    level, bars = words.get_verbosity(), words.is_progress_bar_enabled()
    words.set_verbosity(words.CRITICAL)
    words.disable_progress_bar()
    try:
        yield
    finally:
        words.set_verbosity(level)
        if bars:
            words.enable_progress_bar()


@contextmanager
def described(checkpoint: Checkpoint) -> Iterator[Path]:
    """Config and tokenizer in a folder of their own for a while; Refused where there is no config."""
    found, notes = model_files(checkpoint)
    if "config.json" not in found:
        raise Refused(notes[0], where=checkpoint.path, hint="Load it without as_model: a name -> array dictionary.")
    with tempfile.TemporaryDirectory(prefix="nett-") as folder:
        for name, content in found.items():
            (Path(folder) / name).write_bytes(content)
        yield Path(folder)


@final
class Slice:
    """One tensor that is read when it is indexed, as transformers takes it from a safetensors file."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        import torch

        info = checkpoint.tensors[name]
        self._checkpoint, self._name = checkpoint, name
        self.shape = info.shape
        self.dtype = getattr(torch, info.dtype.alias)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self._checkpoint.tensors[self._name].dtype.name

    def is_floating_point(self) -> bool:
        return bool(self.dtype.is_floating_point)

    def __getitem__(self, index: Any) -> Any:
        import torch

        raw = self._checkpoint.read(self._name).view(np.uint8)
        tensor = torch.from_numpy(raw).view(self.dtype).reshape(self.shape)
        return tensor if index is Ellipsis else tensor[index]
