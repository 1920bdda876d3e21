"""Random sequences of everything that can befall a store, in one warm process that forks a child for each death.

``run(seed, …)`` plays one sequence and raises where a model is lost or comes back wrong; ``main`` plays many, in
several processes, and says how many and how long: ``PYTHONPATH=tests python -m support.sequences 10000``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import threadpoolctl

from nett.core.errors import NettError, ProofFailed
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.check import check
from nett.store.checking import check_store
from nett.store.gc import gc
from nett.store.library import Library
from nett.store.reading import open_stored
from nett.store.remove import remove
from nett.store.restoring import restore_model
from support.work import counted

Models = dict[str, Path]
ACTIONS = (
    "add", "add", "add", "remove", "remove", "gc", "gc", "gc while read", "kill add", "kill add", "kill gc",
    "kill remove", "flip", "flip and repair", "cut and repair", "flip record", "restore",
)  # fmt: skip


def family(folder: Path) -> Models:
    """A base, fine-tunes, one of a fine-tune, and a run whose checkpoints are two of them."""
    base = write_llama(folder / "base", layers=1, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
    tuned = [fine_tune_of(base, folder / f"m{i}", seed=i) for i in range(1, 4)]
    chained = fine_tune_of(tuned[0], folder / "m4", seed=9)
    run = folder / "run"
    shutil.copytree(tuned[1], run / "checkpoint-1")
    fine_tune_of(tuned[1], run / "checkpoint-2", seed=11)
    return {p.name: p for p in (base, *tuned, chained, run)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


class Sequence:
    """One store and what should be in it."""

    def __init__(self, store: Path, models: Models, scratch: Path, seed: int) -> None:
        self.store, self.models, self.scratch = store, models, scratch
        self.chance = random.Random(seed)
        self.there: set[str] = set()
        self.done: Counter[str] = Counter()

    @property
    def is_store(self) -> bool:
        return (self.store / "nett.json").is_file()

    def objects(self) -> list[Path]:
        return sorted((self.store / "objects").glob("??/*"))

    def comes_back(self, name: str) -> None:
        restore_model(self.store, name, self.scratch / name, threads=1)
        assert bytes_of(self.scratch / name) == bytes_of(self.models[name]), f"{name} came back wrong"
        shutil.rmtree(self.scratch / name)

    def all_come_back(self) -> None:
        for name in sorted(self.there):
            self.comes_back(name)

    def step(self) -> None:
        action = self.chance.choice(ACTIONS)
        getattr(self, "do_" + action.replace(" ", "_"))(action)
        if self.is_store:
            found = set(Library.open(self.store).names())
            assert found == self.there, f"after {action}: {found} instead of {self.there}"

    def end(self) -> None:
        if self.is_store:
            checks, hit = check_store(self.store, full=True, threads=1)
            assert {c["name"] for c in checks} == {f"model {n}" for n in self.there} and not hit, (checks, hit)
            self.all_come_back()

    # -- what happens -------------------------------------------------------------------------------------------

    def _some(self) -> list[str]:
        absent = sorted(self.models.keys() - self.there)
        return self.chance.sample(absent, self.chance.randint(1, len(absent))) if absent else []

    def do_add(self, action: str) -> None:
        if some := self._some():
            limit = self.chance.choice([None] * 14 + [1e-3, 1.0])
            paths = [str(self.models[n]) for n in some]
            add(paths, into=str(self.store), max_restore_seconds=limit, deltas=self.chance.random() < 0.9, threads=1)
            self.there |= set(some)
            self.done[action] += 1

    def do_remove(self, action: str) -> None:
        if self.there:
            some = self.chance.sample(sorted(self.there), self.chance.randint(1, len(self.there)))
            remove([f"{self.store}/{n}" for n in some])
            self.there -= set(some)
            self.done[action] += 1

    def do_gc(self, action: str) -> None:
        if self.is_store:
            gc([str(self.store)], grace=self.chance.choice([0.0, 0.0, 0.0, 24.0]), recode=self._recode(), threads=1)
            self.done[action] += 1

    def _recode(self) -> str:
        return self.chance.choice(["smaller", "always", "always", "never"])

    def do_gc_while_read(self, action: str) -> None:
        """A reader that opened a model before everything was removed and collected goes on reading it."""
        named = sorted(n for n in self.there if n != "run")
        if not named:
            return
        name = self.chance.choice(named)
        with open_stored(self.store, name) as reader:
            tensors = sorted(reader.tensors)
            for tensor in self.chance.sample(tensors, self.chance.randint(0, 3)):
                reader.read(tensor)
            gone = self.chance.sample(sorted(self.there), self.chance.randint(1, len(self.there)))
            remove([f"{self.store}/{n}" for n in gone])
            self.there -= set(gone)
            gc([str(self.store)], grace=0.0, recode=self._recode(), threads=1)
            from nett.core.checkpoint import open_checkpoint

            with open_checkpoint(self.models[name]) as plain:
                for tensor in tensors:
                    assert reader.read(tensor).tobytes() == plain.read(tensor).tobytes(), f"{name} read wrong"
        self.done[action] += 1

    def _killed(self, call: str, most: int, **arguments: object) -> bool:
        """Do it in a child that dies at some step; whether it did."""
        step, torn = self.chance.randrange(most), self.chance.random() < 0.5
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                counted(call=call, die_at=step, torn=torn, **arguments)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 77), f"{call} ended with {code}"
        return code == 77

    def do_kill_add(self, action: str) -> None:
        if some := self._some():
            before = set(self.there)
            died = self._killed("store_add", 150, models=[str(self.models[n]) for n in some], store=str(self.store))
            self.there = set(Library.open(self.store).names()) if self.is_store else set()
            assert before <= self.there <= before | set(some), "a killed add took or gave what it should not"
            assert died or self.there == before | set(some)
            self.all_come_back()
            self.done[action] += 1

    def do_kill_gc(self, action: str) -> None:
        if self.is_store:
            self._killed("store_gc", 120, store=str(self.store), recode=self._recode())
            self.all_come_back()
            self.done[action] += 1

    def do_kill_remove(self, action: str) -> None:
        if self.there:
            name = self.chance.choice(sorted(self.there))
            self._killed("store_remove", 3, model=f"{self.store}/{name}")
            there = set(Library.open(self.store).names())
            assert self.there - {name} <= there <= self.there
            self.there = there
            self.done[action] += 1

    def _flip(self, victim: Path) -> None:
        blob = bytearray(victim.read_bytes())
        if blob:
            blob[self.chance.randrange(len(blob))] ^= 1 << self.chance.randrange(8)
            victim.write_bytes(bytes(blob))

    def _damaged(self) -> set[str]:
        """The models that check names; every other one comes back, and these come back right or not at all."""
        damaged = {n for names in check_store(self.store, full=True, threads=1)[1].values() for n in names}
        for name in sorted(self.there):
            try:
                self.comes_back(name)
            except NettError:
                assert name in damaged, f"{name} does not come back, and check did not say so"
        return damaged

    def do_flip(self, action: str) -> None:
        """A bit flips, and the models that it hits are given up."""
        if self.there and (victims := self.objects()):
            victim = self.chance.choice(victims)
            whole = victim.read_bytes()
            self._flip(victim)
            damaged = self._damaged()
            if damaged:
                victim.unlink()
            else:  # no model needs it, or it was a bit that tells nothing, and all models came back
                victim.write_bytes(whole)
            gc([str(self.store)], grace=0.0, threads=1)
            if damaged:
                remove([f"{self.store}/{n}" for n in sorted(damaged)])
            self.there -= damaged
            gc([str(self.store)], grace=0.0, threads=1)
            self.done[action] += 1

    def do_flip_and_repair(self, action: str) -> None:
        """The same, mended from the originals; or, where no model needs the object, met by the next add."""
        if victims := self.objects():
            self._flip(self.chance.choice(victims))
            if self._damaged():
                check([str(self.store)], repair=True, threads=1)
            self.done[action] += 1

    def do_cut_and_repair(self, action: str) -> None:
        """An object that lost its end, or is longer than it was, or has none, or is gone."""
        if victims := self.objects():
            victim = self.chance.choice(victims)
            blob = victim.read_bytes()
            how = self.chance.choice(["short", "long", "empty", "gone"])
            cut = {"short": blob[: self.chance.randrange(len(blob) + 1)], "long": blob + b"\0" * 9, "empty": b""}
            victim.unlink() if how == "gone" else victim.write_bytes(cut[how])
            if self._damaged():
                check([str(self.store)], repair=True, threads=1)
            self.done[action] += 1

    def do_flip_record(self, action: str) -> None:
        """A bit of a model's record: the model is refused, not given back otherwise than it was."""
        if not self.there:
            return
        name = self.chance.choice(sorted(self.there))
        record = self.store / "models" / f"{name}.json"
        self._flip(record)
        try:
            self.comes_back(name)
        except NettError:
            try:
                gc([str(self.store)], grace=0.0, threads=1)  # knows no longer what is needed, and takes nothing
                raise AssertionError("collected without knowing what is needed")
            except ProofFailed:
                pass
            remove([f"{self.store}/{name}"])
            self.there.discard(name)
        self.done[action] += 1

    def do_restore(self, action: str) -> None:
        if self.there:
            self.comes_back(self.chance.choice(sorted(self.there)))
            self.done[action] += 1


def run(seed: int, models: Models, folder: Path, length: int = 12) -> Counter[str]:
    """One sequence; returns how often each thing happened."""
    store, scratch = folder / f"store{seed}", folder / f"out{seed}"
    one = Sequence(store, models, scratch, seed)
    for _ in range(length):
        one.step()
    one.end()
    shutil.rmtree(store, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    return one.done


def many(count: int, first: int, workers: int, folder: Path, say: Callable[[str], None]) -> int:
    """``count`` sequences from seed ``first`` on, in ``workers`` processes; returns how many failed."""
    models = family(folder / "models")
    began = time.monotonic()
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            failed, total = 0, Counter[str]()
            for done, seed in enumerate(range(first + worker, first + count, workers), start=1):
                try:
                    total += run(seed, models, folder)
                except BaseException:
                    failed += 1
                    say(f"seed {seed} failed:\n{traceback.format_exc()}")
                if done % 250 == 0:
                    say(f"worker {worker}: {done} sequences, {failed} failed, {time.monotonic() - began:.0f} s")
            say(f"worker {worker}: {sum(total.values())} actions: {dict(sorted(total.items()))}")
            os._exit(min(failed, 100))
        children.append(child)
    failed = sum(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)
    say(f"{count} sequences in {time.monotonic() - began:.0f} s on {workers} processes, {failed} failed")
    return failed


class _Unlimited:
    """In the place of limits on BLAS threads, which nothing here uses."""

    def __init__(self, *_: object) -> None: ...
    def restore_original_limits(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    from nett.core.progress import report

    report.style = "quiet"
    threadpoolctl.threadpool_limits = _Unlimited  # a third of the time otherwise: it looks through all libraries
    memory = Path("/dev/shm")  # a death in a child is no power cut, so nothing here needs a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        sys.exit(many(asked.count, asked.first, asked.workers, Path(folder), lambda line: print(line, flush=True)) > 0)


if __name__ == "__main__":
    main()
