"""What a kernel carries from model to model, in a file on disk: each tensor written once, journalled, read again."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.carrying import Carried, Made
from nett.core.checkpoint.safetensors import read_header
from nett.core.checkpoint.writer import FileSpec
from nett.core.dtypes import Array
from nett.core.errors import NettError, Refused
from nett.core.staging import Staging, replaced_path, staged
from nett.merge.carrying import Carrying
from nett.merge.job import TensorTask
from nett.merge.state import STATE, TENSORS, State, read_state

MARK_BYTES = 64 << 20  # how much may have to be done again after a kill


@contextmanager
def carrier_of(plan: Carrying | None, staging: Staging) -> Iterator[Carrier | None]:
    """Where a job keeps what it carries; None for jobs that carry nothing. ``staging``: of the output."""
    if plan is None:
        yield None
        return
    inside = plan.folder is None
    folder = plan.folder or staging.path / "carried"
    if not inside and replaced_path(folder).exists():  # a kill cut the replacement in two; opening it mends that
        with staged(folder, plan.key) as left:
            if not left.resumed:
                left.discard()
    before = read_state(folder)  # inside: left by a run that died while it was writing
    with ExitStack() as stack:
        own = None
        if before is None or before.hashes != [m.sha256 for m in plan.models]:
            own = stack.enter_context(staged(folder, plan.key))
            before = read_state(folder)
            if not inside and (before and before.hashes) != (plan.before and plan.before.hashes):
                raise Refused("was changed by another run just now", where=folder, hint="Run the same command again.")
        carrier = Carrier(plan, before, own)
        try:
            yield carrier
        finally:
            carrier.close()
    if inside:
        shutil.rmtree(folder)


@final
class Carrier:
    """What a kernel carries, tensor by tensor: read from where it stands, or made and put there. Safe from threads."""

    def __init__(self, plan: Carrying, before: State | None, staging: Staging | None) -> None:
        """``staging``: of the new state; None where ``before`` is all there is to it."""
        self._plan, self._before, self._staging = plan, before, staging
        self._old = _File(before.place / TENSORS, plan.spec) if before is not None else None
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Any]] = {}
        self._unsynced = 0
        if staging is None:
            assert self._old is not None and before is not None
            self._file, self._numbers = self._old, dict(before.numbers)
            return
        self._numbers = {}
        self._file = _File(staging.path / TENSORS, plan.spec, new=True)
        try:
            self._take_up(staging)
        except BaseException:
            self.close()
            raise

    def _take_up(self, staging: Staging) -> None:
        """What an interrupted run left; NettError if it is not what the journal says."""
        for entry in staging.entries:
            for name, (numbers, digest) in entry.get("carried", {}).items():
                if _digest(self._file.read(name)) != digest:
                    raise NettError(
                        "does not hold what its journal says",
                        where=self._file.path,
                        hint=f"Delete {staging.path} and run the same command again: it then starts from the beginning.",
                    )
                self._numbers[name] = numbers

    @property
    def wide(self) -> bool:
        """Whether numbers are carried as float64."""
        return self._plan.spec.tensors[0].dtype.name == "F64"

    @property
    def whole(self) -> bool:
        """Whether nothing has to be made any more."""
        return all(t.name in self._numbers for t in self._plan.job.tasks if not t.copied and t.size)

    def answer(self, ask: Carried, task: TensorTask) -> Made:
        """What the kernel carries of this tensor over all models."""
        name = task.name
        if name in self._numbers:
            return self._file.read(name), self._numbers[name]
        if self._old is not None and self._before is not None:
            array, numbers = ask.make(self._old.read(name), self._before.numbers[name])
        else:
            array, numbers = ask.make(None, [])
        self._file.write(name, array)
        with self._lock:
            self._numbers[name] = numbers
            self._waiting[name] = [numbers, _digest(array)]
            self._unsynced += array.nbytes
            if self._unsynced >= MARK_BYTES:
                self._mark()
        return array, numbers

    def _mark(self) -> None:
        if self._waiting and self._staging is not None:
            self._file.sync()
            self._staging.record(carried=self._waiting)
            self._waiting, self._unsynced = {}, 0

    def complete(self) -> None:
        """Put the new state in place, once everything is there."""
        if self._staging is None:
            return
        if not self.whole:
            raise NettError(f"{self._plan.job.card.key} did not carry every tensor")
        self._mark()
        self._file.sync()
        job = self._plan.job
        state = State(
            self._staging.out, nett.__version__, job.card.key, dict(job.parameters), self._plan.base, self._plan.models,
            dict(sorted(self._numbers.items())), self._file.sha256(),
        )  # fmt: skip
        self._staging.write_file(STATE, state.as_bytes())
        self._staging.commit()
        self._staging = None

    def close(self) -> None:
        self._file.close()
        if self._old is not None:
            self._old.close()


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


@final
class _File:
    """A tensor file whose tensors are written and read whole, in any order."""

    def __init__(self, path: Path, spec: FileSpec, *, new: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, (os.O_RDWR | os.O_CREAT if new else os.O_RDONLY) | os.O_CLOEXEC, 0o644)
        try:
            if new:
                os.posix_fallocate(self._fd, 0, spec.nbytes)
                os.ftruncate(self._fd, spec.nbytes)
                os.pwrite(self._fd, spec.header(), 0)
            self._tensors, _ = read_header(path)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> Array:
        info = self._tensors[name]
        out = np.empty(info.shape, info.dtype.raw)
        view, at = out.data.cast("B"), info.offset
        while view:
            got = os.preadv(self._fd, [view], at)
            if not got:
                raise NettError(f"ends at byte {at}: it changed while being read", where=self.path)
            view, at = view[got:], at + got
        return out

    def write(self, name: str, array: Array) -> None:
        info = self._tensors[name]
        if array.shape != info.shape or array.dtype != np.dtype(info.dtype.raw):
            raise NettError(f"{name!r} was carried as {array.dtype} {array.shape}, which is not what was planned")
        view, at = np.ascontiguousarray(array).data.cast("B"), info.offset
        while view:
            done = os.pwrite(self._fd, view, at)
            view, at = view[done:], at + done

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def sha256(self) -> str:
        return receipts.open_sha256(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
