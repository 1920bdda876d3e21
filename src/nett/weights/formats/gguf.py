"""One GGUF file, which llama.cpp and transformers load: blocks of 32 numbers with a scale in float16.

4 bits around zero are Q4_0, with zero points Q4_1 (whose float16 minimum is rounded once more), 8 bits Q8_0: the codes are
exactly those of the kernel. Vectors are float32, all other matrices float16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from nett.core.blocks import Linear, Skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.gguf_plan import GgufPlan, describe, plan_gguf, writer_for
from nett.core.checkpoint.gguf_vocabulary import copy_vocabulary, write_vocabulary
from nett.core.dtypes import Array, Dtype
from nett.core.errors import Refused
from nett.core.parts import FOLDER
from nett.core.progress import report
from nett.core.sidefiles import model_files
from nett.core.staging import Staging
from nett.weights.formats.base import Format, Written
from nett.weights.formats.dense import Dense
from nett.weights.job import Job
from nett.weights.protocol import Answer, Quantised, Tensor

BLOCK = 32


@final
class Gguf(Format):
    """Refused where a kernel's numbers have no block type, or the model no names in GGUF."""

    name = "gguf"
    suffix: ClassVar[str] = "gguf"
    scales: ClassVar[str | None] = "float16"

    def __init__(self, skeleton: Skeleton, job: Job) -> None:
        for task in (t for block in job.blocks for t in block):
            _check(task.linear, task.parameters, job.card.key)
        model, stored = skeleton.model, skeleton.checkpoint.tensors
        shapes = {n: tuple(p.shape) for n, p in model.state_dict().items() if n in stored}
        self.plan: GgufPlan = plan_gguf(skeleton.checkpoint, model.config, shapes)
        self._source, self._said = skeleton.checkpoint, list[str]()

    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import torch

        if not isinstance(answer, Quantised):
            return Dense().tensors(linear, answer)
        if answer.activations is not None:
            raise Refused("rounds activations, which GGUF cannot say", hint="--format compressed-tensors")
        kind = "Q8_0" if answer.bits == 8 else "Q4_0" if answer.zero is None else "Q4_1"
        blocks = torch.from_numpy(_blocks(answer, kind)).to(answer.codes.device)
        return {linear.weight: blocks}, {"bits": answer.bits, "type": kind}

    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        import torch
        from gguf import GGMLQuantizationType, dequantize

        found = tensors[linear.weight]
        if "type" not in kind:
            return found
        return torch.from_numpy(dequantize(found.cpu().numpy(), GGMLQuantizationType[kind["type"]])).to(found.device)

    def expected(self, answer: Quantised) -> Tensor:
        rows, columns = answer.codes.shape
        scale, codes = answer.scale.float().unsqueeze(-1), answer.codes.float().reshape(rows, -1, BLOCK)
        if answer.zero is not None:
            codes, low = codes + 8, _lowest(answer).float().unsqueeze(-1)
            return (codes * scale + low).reshape(rows, columns)
        return (codes * scale).reshape(rows, columns)

    def join(
        self,
        parts: Sequence[Path],
        staging: Staging,
        size: int,
        layers: Sequence[Written],
        order: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """All parts as ``model.gguf``, tensor by tensor; the parts are gone afterwards."""
        from gguf import GGMLQuantizationType, LlamaFileType

        path, kinds = staging.path / "model.gguf", {w.linear.weight: w.kind.get("type") for w in layers}
        writer = writer_for(path, self.plan.architecture)
        most = {k for k in kinds.values() if k is not None}
        writer.add_file_type(LlamaFileType[f"MOSTLY_{most.pop() if len(most) == 1 else 'F16'}"])
        writer.add_quantization_version(2)  # of ggml's block types
        describe(writer, self.plan.architecture, self.plan.config)
        self._said = self._vocabulary(writer)
        opened = [open_checkpoint(p) for p in parts]
        try:
            infos = [(c, t) for c in opened for t in sorted(c.tensors.values(), key=lambda t: t.offset)]
            for _, info in infos:
                kind = kinds.get(info.name)
                plain = np.float32 if len(info.shape) == 1 else np.float16
                as_bytes = np.dtype(np.uint8) if kind else np.dtype(plain)
                raw = GGMLQuantizationType[kind] if kind else None
                writer.add_tensor_info(
                    self.plan.names[info.name], info.shape, as_bytes, info.size * as_bytes.itemsize, raw
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            report.begin("writing", sum(t.nbytes for _, t in infos))
            for checkpoint, info in infos:
                writer.write_tensor_data(self._laid_out(checkpoint, info, kinds.get(info.name)))
                report.step(info.nbytes)
            writer.close()
        finally:
            for checkpoint in opened:
                checkpoint.close()
        for part in parts:
            part.unlink()
        (staging.path / FOLDER).rmdir()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [{"path": path.name, "bytes": path.stat().st_size, "sha256": digest}]

    def _laid_out(self, checkpoint: Any, info: Any, kind: str | None) -> Array:
        if kind:
            rows = checkpoint.read(info.name).reshape(info.shape)
        else:
            values = checkpoint.values(info.name).reshape(info.shape)
            rows = values.astype(np.float32 if values.ndim == 1 else np.float16)
        return np.ascontiguousarray(self.plan.laid_out(info.name, rows))

    def _vocabulary(self, writer: Any) -> list[str]:
        if self._source.format == "gguf":
            copy_vocabulary(writer, self._source.path)
            return []
        files, _ = model_files(self._source)
        why = write_vocabulary(writer, files, int(self.plan.config.vocab_size))
        if why is not None:
            return [f"the file has no tokenizer: {why}"]
        return [
            "llama.cpp will split text before its merges by its default rule: set tokenizer.ggml.pre to its own name"
        ]

    def files(
        self, models: Sequence[Skeleton], layers: Sequence[Written], kept: Sequence[str], dtype: Dtype | None
    ) -> tuple[dict[str, bytes], list[str]]:
        return {}, self._said  # the file carries config and tokenizer


def _check(linear: Linear, parameters: Mapping[str, Any], where: str) -> None:
    """Before any work: numbers that have a block type, in rows that blocks divide."""
    bits, symmetric = parameters.get("bits"), bool(parameters.get("symmetric", True))
    if bits is None:
        return
    if (bits, symmetric) not in ((4, True), (4, False), (8, True)):
        kind = f"{bits} bits" + ("" if symmetric else " with zero points")
        hint = "--bits 4 or --bits 8, or --format compressed-tensors"
        raise Refused(f"GGUF has no block of {kind} that holds these numbers as they are", where=where, hint=hint)
    group = parameters.get("group", BLOCK)
    if group != BLOCK or linear.columns % BLOCK:
        what = f"groups of {group}" if group != BLOCK else f"rows of {linear.columns} columns in {linear.module}"
        raise Refused(f"GGUF has a scale for each {BLOCK} columns: {what} do not fit", where=where, hint="--group 32")


def _lowest(answer: Quantised) -> Tensor:
    """What the smallest code stands for, float16 [out, groups]."""
    assert answer.zero is not None
    return ((-8 - answer.zero.float()) * answer.scale.float()).half()


def _blocks(answer: Quantised, kind: str) -> Array:
    """Bytes ``[out, in / 32 * bytes of a block]``: scale, (lowest value,) codes; two of 4 bits in a byte, the first
    16 of a block in its lower halves."""
    rows = len(answer.codes)
    codes = answer.codes.cpu().numpy().reshape(rows, -1, BLOCK)
    head = [answer.scale.half().cpu().numpy()[..., None].view(np.uint8)]
    if kind == "Q8_0":
        body: Array = codes.view(np.uint8)
    else:
        shifted = (codes.astype(np.int16) + 8).astype(np.uint8)
        body = shifted[..., : BLOCK // 2] | shifted[..., BLOCK // 2 :] << 4
        if kind == "Q4_1":
            head.append(_lowest(answer).cpu().numpy()[..., None].view(np.uint8))
    found = np.concatenate([*head, body], axis=-1)
    return np.ascontiguousarray(found.reshape(rows, -1))
