"""Headers mutated at random: opening either works or is refused, in bounded time and memory, whatever they say.

    python tests/support/fuzz.py N [SEED]     N cases by hand; prints those that fail and keeps their files

A case is a number: the same number makes the same files.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

SECONDS = 5.0  # for one case; a sound file takes some milliseconds, a busy machine a hundred times that
MEMORY = 400 << 20  # bytes by which one case may raise the peak of the resident set
_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63),
)
_VALUES: tuple[Any, ...] = (
    None, True, False, *_NUMBERS, 1 << 70, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "F32", "BF16", "I64", "F99",
    "../../etc/passwd", "/etc/passwd", "a\0b", ".", "model.safetensors", "\ud800", "x" * 300, [], [0], [0, 0], [-1, 4],
    [1 << 40, 1 << 40], [None], ["a"], {}, {"a": 1}, {"dtype": "F32"}, "(a+)+$", ".*", "LORA", "llama", "mamba",
)  # fmt: skip


@final
@dataclass(frozen=True)
class Seed:
    """A sound checkpoint in ``folder``: what is mutated, how it is opened."""

    name: str
    folder: Path
    file: str
    kind: str  # json, safetensors or gguf
    reference: Callable[[Path], str]


def seeds(place: Path) -> list[Seed]:
    """Sound checkpoints of every kind, some kilobytes each."""
    import numpy as np

    from nett.core.tiny import write_llama
    from support.gguf_files import write_llama_gguf
    from support.tensors import write_tensors

    one = write_llama(place / "one", layers=1, hidden=16, inter=16, heads=2, kv_heads=1, dtype="F32")
    shards = write_llama(place / "shards", layers=1, hidden=16, inter=16, heads=2, kv_heads=1, shards=3)
    model = "model.layers.0.self_attn.q_proj"
    factors = {f"base_model.model.{model}.lora_{n}.weight": s for n, s in (("A", (2, 16)), ("B", (16, 2)))}
    write_tensors(one / "adapter" / "adapter_model.safetensors", {n: np.ones(s) for n, s in factors.items()})
    settings = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 3},
        "alpha_pattern": {}, "modules_to_save": ["lm_head"], "bias": "none", "use_rslora": False, "fan_in_fan_out": False,
        "init_lora_weights": True, "base_model_name_or_path": "base-inside", "task_type": "CAUSAL_LM", "use_dora": False,
    }  # fmt: skip
    (one / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    write_llama(one / "adapter" / "base-inside", layers=1, hidden=16, inter=16, heads=2, kv_heads=1, dtype="F32")
    several = Path(shutil.copytree(one, place / "several"))
    config = json.loads((one / "config.json").read_text())
    (several / "config.json").write_text(json.dumps({"text_config": config, "model_type": "several", "vocab_size": 64}))
    (place / "gguf").mkdir()
    write_llama_gguf(place / "gguf" / "m.gguf", one, "F16")

    def whole(folder: Path) -> str:
        return str(folder)

    def named(folder: Path) -> str:
        return str(folder / "adapter")

    def over(folder: Path) -> str:
        return f"{folder}+{folder / 'adapter'}"

    first = "model-00001-of-00003.safetensors"
    return [
        Seed("safetensors", one, "model.safetensors", "safetensors", whole),
        Seed("shard", shards, first, "safetensors", whole),
        Seed("index", shards, "model.safetensors.index.json", "json", whole),
        Seed("config", one, "config.json", "json", whole),
        Seed("config of a base", several, "config.json", "json", over),
        Seed("tokenizer", one, "tokenizer.json", "json", whole),
        Seed("adapter config", one, "adapter/adapter_config.json", "json", over),
        Seed("base that an adapter names", one, "adapter/adapter_config.json", "json", named),
        Seed("adapter", one, "adapter/adapter_model.safetensors", "safetensors", over),
        Seed("base of an adapter", one, "model.safetensors", "safetensors", over),
        Seed("gguf", place / "gguf", "m.gguf", "gguf", whole),
    ]


# -- mutations -------------------------------------------------------------------------------------------------------


def mutated(seed: Seed, blob: bytes, rng: random.Random) -> bytes:
    """One to four changes to the header; the data behind it stay."""
    start, end = header_span(seed.kind, blob)
    header, rest = blob[start:end], blob[end:]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if seed.kind != "gguf" and rng.random() < 0.65:
            header = changed_json(header, rng)
        else:
            header = changed_bytes(header, rng)
    if seed.kind != "safetensors":
        return header + rest
    length = len(header) if rng.random() < 0.8 else rng.choice((*_NUMBERS, len(header) - 1, len(header) + 1, len(blob)))
    return (
        (length % (1 << 64)).to_bytes(8, "little") + header + rest[: rng.choice((None, None, None, 0, len(rest) // 2))]
    )


def header_span(kind: str, blob: bytes) -> tuple[int, int]:
    """Where the header's bytes lie."""
    if kind == "safetensors":
        return 8, 8 + int.from_bytes(blob[:8], "little")
    if kind == "json":
        return 0, len(blob)
    return 0, blob.index(b"output_norm.weight") + 64  # near the end of the tensor table


def changed_bytes(blob: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(blob) + 1) if blob else 0
    size = rng.choice((1, 1, 2, 4, 8, 40))
    kind = rng.randrange(6)
    if kind == 0:  # bits
        changed = bytearray(blob)
        for _ in range(size if blob else 0):
            changed[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:  # a number
        width = rng.choice((1, 2, 4, 8))
        return blob[:at] + (rng.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, "little") + blob[at + width :]
    if kind == 2:
        return blob[:at] + blob[at + size :]
    if kind == 3:
        return blob[:at] + blob[max(0, at - size) : at] + blob[at:]
    if kind == 4:
        return blob[:at]
    return blob[:at] + rng.randbytes(size) + blob[at:]


def changed_json(blob: bytes, rng: random.Random) -> bytes:
    try:
        content = json.loads(blob)
        places = list(walk(content))
    except (ValueError, RecursionError):
        return changed_bytes(blob, rng)
    if not places or rng.random() < 0.03:
        deep = rng.choice((50, 3000, 100_000))
        return rng.choice(
            (b"[" * deep, b'{"a":' * deep, json.dumps(rng.choice(_VALUES)).encode(), b"[" * deep + b"]" * deep)
        )
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice((*holder, "x", "", "../x", key + "x" if isinstance(key, str) else "y"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):  # the same key twice
        name = json.dumps(key)
        text = json.dumps(content).replace(f"{name}:", f"{name}: {json.dumps(rng.choice(_VALUES))}, {name}:", 1)
        return text.encode("utf-8", "surrogatepass")
    elif kind == 3 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += rng.choice((-1, 1, 8, -8, 1 << 32))
    else:
        holder[key] = rng.choice(_VALUES)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def walk(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from walk(value)


# -- one case --------------------------------------------------------------------------------------------------------


def use(reference: str) -> None:
    """What every command does with a model before its work starts, and a look at each tensor."""
    from nett.core.aftercare import check_config
    from nett.core.checkpoint import open_checkpoint
    from nett.core.conversion import plan

    with open_checkpoint(reference) as checkpoint:
        checkpoint.config()
        check_config(checkpoint)
        for file in plan(checkpoint, None, 1 << 30).files:
            file.header()
        for name, info in list(checkpoint.tensors.items())[:40]:
            checkpoint.values(name, 0, min(info.size, 50))


def case(seed: Seed, number: int, place: Path) -> str | None:
    """Make the files of case ``number`` in ``place`` and open them; what went wrong, or None."""
    from nett.core.errors import NettError

    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(seed.folder, place)
    target = place / seed.file
    target.write_bytes(mutated(seed, target.read_bytes(), random.Random(number)))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before, began = resident("VmRSS"), time.perf_counter()
    try:
        use(seed.reference(place))
    except NettError as error:
        if len(str(error)) > 2000:
            return f"a message of {len(str(error))} characters"
    except BaseException:
        return traceback.format_exc(limit=-6)
    took, grown = time.perf_counter() - began, resident("VmHWM") - before
    return f"took {took:.1f} s" if took > SECONDS else f"took {grown >> 20} MB" if grown > MEMORY else None


def resident(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def main(count: int, first: int = 0) -> int:
    place = Path(tempfile.mkdtemp(prefix="nett-fuzz-"))
    (place / "seeds").mkdir()
    known = seeds(place / "seeds")
    failed = 0
    for seed in known:  # imports and compilation are not the fault of a case
        use(seed.reference(seed.folder))
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + (2 << 30),) * 2)
    for number in range(first, first + count):
        seed = known[number % len(known)]
        wrong = case(seed, number, place / "case")
        if wrong is not None:
            failed += 1
            kept = place / f"failed-{number}"
            shutil.copytree(place / "case", kept)
            print(f"case {number} ({seed.name}), kept in {kept}:\n{wrong}", flush=True)
        if (number - first) % 2000 == 1999:
            print(f"{number - first + 1} cases, {failed} failed", flush=True)
    print(f"{count} cases, {failed} failed")
    if not failed:
        shutil.rmtree(place)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
