"""What users of mergekit's commands type: which of nett's options it is, what has no effect here and why, and what is
refused. Literals only; the command line of recipes is made from them."""

from __future__ import annotations

from nett.core.errors import UsageError

FLAGS = {  # without a value; what is said when they are given
    "--cuda": "nett computes on the CPU",
    "--low-cpu-memory": "nett computes on the CPU, in memory that does not grow with the model",
    "--read-to-gpu": "nett computes on the CPU",
    "--multi-gpu": "nett computes on the CPU",
    "--gpu-rich": "nett computes on the CPU",
    "--lazy-unpickle": "nett always reads tensors one by one",
    "--clone-tensors": "layers that stand twice are always written twice",
    "--async-write": "reading, merging and writing always overlap",
    "--allow-crimes": "nett goes by tensor names and shapes, whatever the architectures are called",
    "--trust-remote-code": "no code of a model is ever run",
    "--copy-tokenizer": "the tokenizer is always written along",
    "--no-copy-tokenizer": "the tokenizer is always written along; remove its files if you do not want them",
    "--write-model-card": "the receipt (nett.json, nett.html) says what was merged",
    "--no-write-model-card": "there is none: the receipt (nett.json, nett.html) says what was merged",
    "--safe-serialization": "nett writes safetensors only",
    "--lazy": "a step that is whole and of the same work is always taken as it lies",
    "-v": "--quiet says less; the receipt says all",
}
VALUES = {  # with a value
    "--device": "nett computes on the CPU",
    "--write-threads": "use --threads for all of the work",
    "--lora-merge-cache": "adapters are applied while streaming, so nothing is cached",
    "--lora-merge-dtype": "adapters are applied in float32 while streaming",
}
SAME = {  # another name for an option of nett
    "--out-path": "out",
    "--out-shard-size": "shard_size",
    "--num-threads": "threads",
    "-j": "threads",
    "--intermediate-dir": "keep_steps",
    "-I": "keep_steps",
}
REFUSED = {  # (takes a value, what to do instead)
    "--random-seed": (True, "Write it into the recipe: parameters: {seed: N}. Only methods that draw take it."),
    "--transformers-cache": (True, "Set the environment variable HF_HUB_CACHE to it; nett downloads nothing."),
    "--no-safe-serialization": (False, "Leave it out: nett writes safetensors only."),
    "--no-lazy": (False, "Leave it out, and add --overwrite to have finished steps replaced."),
}


def in_our_terms(option: str, value: str) -> str:
    """The value of an option of :data:`SAME` as nett has it: mergekit counts shards in k, m and b of 1000."""
    if option != "--out-shard-size":
        return value
    number, unit = value.strip().rstrip("kmbKMB"), value.strip()[-1:].lower()
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(unit, 1)
    if not number.isdigit() or len(value.strip()) - len(number) > 1:
        raise UsageError(
            f"--out-shard-size {value!r} is not a size as mergekit has it",
            hint="Write a whole number, with k, m or b for thousands of them: --out-shard-size 5b. Or: --shard-size 5GB.",
        )
    return f"{int(number) * factor}"
