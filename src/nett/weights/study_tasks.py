"""Programming tasks: what a model is given, what of its answer counts, whether that parses, and whether it works.

HumanEval and MBPP as their files have them; of a Python file its functions, cut in the middle of their lines.
"""

from __future__ import annotations

import ast
import gzip
import json
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core.errors import Refused, UsageError

_LEAST = 6  # lines of a function that is cut


@final
@dataclass(frozen=True)
class Task:
    """``prompt``: given to the model. ``head``: stands before the answer in the program. ``tests``: behind it, "" where
    there are none. ``inside``: the answer goes on with a function, and ends where the indentation does."""

    name: str
    prompt: str
    head: str
    tests: str
    inside: bool

    def program(self, answer: str) -> str:
        return f"{self.head}{answer}\n{self.tests}\n"

    def cut(self, answer: str, *, whole: bool) -> str:
        """What of the model's words counts. ``whole``: it ended by itself; otherwise its last line may be unfinished."""
        lines = answer.split("\n")
        if not whole and len(lines) > 1:
            lines = lines[:-1]
        kept = lines[:1] if self.inside else []
        for line in lines[len(kept) :]:
            if line.strip() and not self._belongs(line):
                break
            kept.append(line)
        return "\n".join(kept)

    def _belongs(self, line: str) -> bool:
        first = line[0]
        if self.inside:
            return first in " \t)]}"
        return first in " \t)]}@#" or line.startswith(("def ", "class ", "import ", "from ", "async "))

    def parses(self, answer: str) -> bool:
        """Whether head and answer are Python; an answer of nothing is none."""
        if not answer.strip():
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(self.head + answer)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True


def read_tasks(file: Path, most: int) -> list[Task]:
    """At most ``most`` tasks, evenly spread. Refused where the file holds none."""
    if not file.is_file():
        raise UsageError("there is no such file of tasks", where=file)
    found = _functions(file) if file.suffix == ".py" else _records(file)
    if not found:
        raise Refused("holds no tasks: neither functions of Python nor those of HumanEval or MBPP", where=file)
    step = max(1.0, len(found) / most)
    return [found[int(i * step)] for i in range(min(most, len(found)))]


def _functions(file: Path) -> list[Task]:
    source = file.read_text(encoding="utf-8", errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise Refused(f"is not Python: {error}", where=file) from error
    lines, found = source.split("\n"), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
            continue
        own = lines[node.lineno - 1 : node.end_lineno]
        first = node.body[0].lineno - node.lineno  # lines of the head
        if len(own) - first < _LEAST:
            continue
        keep = first + (len(own) - first) // 2
        half = textwrap.dedent("\n".join(own)).split("\n")[:keep]
        if half[-1].strip():
            given = "\n".join(half)
            found.append(Task(f"{node.name}:{node.lineno}", given, given, "", True))
    return sorted(found, key=lambda t: int(t.name.rpartition(":")[2]))


def _records(file: Path) -> list[Task]:
    blob = file.read_bytes()
    text = (gzip.decompress(blob) if file.suffix == ".gz" else blob).decode("utf-8", errors="replace")
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
        return [_record(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"is no file of tasks ({type(error).__name__}: {error})",
            where=file,
            hint="Lines of JSON with prompt, test, entry_point (HumanEval), or text, test_list (MBPP); or a .py file.",
        ) from error


def _record(row: Any) -> Task:
    name = str(row["task_id"])
    if "entry_point" in row:
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        return Task(name, row["prompt"], row["prompt"], tests, True)
    wanted: Sequence[str] = row["test_list"]
    imports = "\n".join(row.get("test_imports", ())) + "\n" + (row.get("test_setup_code") or "")
    prompt = f'"""\n{row.get("text") or row["prompt"]}\n{wanted[0]}\n"""\n'
    return Task(name, prompt, "", "\n".join([imports, *wanted]), False)
