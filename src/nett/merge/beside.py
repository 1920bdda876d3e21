"""What lies beside the weights of an output: config, tokenizer, chat template."""

from __future__ import annotations

from nett.core.sidefiles import model_files, with_dtype
from nett.merge.heads import gets_own_head, with_own_head
from nett.merge.job import Job
from nett.merge.outputs import outputs_of


def side_files_of(job: Job) -> tuple[dict[str, bytes], list[str]]:
    """Config and tokenizer of the donor; for outputs that hold several tasks, what each task has of its own. Name ->
    content, and what the reader should know."""
    if job.donor.config() is None:
        return {}, []
    common, notes = model_files(job.donor)
    found: dict[str, bytes] = {}
    if any(o.name == "model" for o in outputs_of(job.card)):
        types = {t.dtype for t in job.tasks if not t.copied}
        changed = len(types) == 1 and (
            job.donor.format == "gguf"  # whose config names no type
            or any(t.dtype != t.operands[0].info.dtype for t in job.tasks)
        )
        for edit in job.edits:
            common = edit(common)
        if gets_own_head(job.donor, (t.name for t in job.tasks), job.checkpoints) and "config.json" in common:
            common = common | {"config.json": with_own_head(common["config.json"])}
            notes = [
                *notes,
                f"the output has an output layer of its own: {job.donor.path} ties it to its embeddings, others do not; "
                "config.json says tie_word_embeddings false",
            ]
        for name, content in common.items():
            found[name] = (
                with_dtype(content, next(iter(types)) if changed else None) if name == "config.json" else content
            )
    else:
        for label, model in zip(job.labels, job.tuned, strict=True):
            if model.config() is not None:
                for name, content in model_files(model)[0].items():
                    if common.get(name) != content:
                        found[f"tasks/{label}/{name}"] = content
    return found, notes
