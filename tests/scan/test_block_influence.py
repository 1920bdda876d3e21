"""Block influence against hidden states of transformers; nothing is run without a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.tiny import write_llama
from nett.scan.block_influence import block_influence
from support.scanning import model, parsed, write


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("influence") / "llama", layers=3)


def test_nothing_without_a_text(llama: Path) -> None:
    said = block_influence([str(llama)])
    assert said.found == () and said.figures == {}


def test_against_transformers(llama: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from nett.core import torch_model
    from nett.core.windows import read_windows

    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["sun", "road", "river", "dust"], 400)))
    said = block_influence([str(llama)], text=str(text), samples=3, length=32, most=2.0)
    ids = read_windows(text, torch_model.tokenizer(llama), samples=3, length=32, vocabulary=64).ids
    loaded = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    states = []
    for layer in loaded.model.layers:
        layer.register_forward_hook(
            lambda m, given, out: states.append((given[0], out[0] if isinstance(out, tuple) else out))
        )
    with torch.no_grad():
        loaded(torch.from_numpy(ids))
    assert len(said.found) == 3
    for finding, figures, (a, b) in zip(said.found, said.figures[str(llama)]["blocks"], states, strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert figures["influence"] == pytest.approx(1 - cosine.mean(), abs=1e-5)
        assert finding.edge.error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(b), rel=1e-4)
        assert finding.edge.bytes_freed == sum(p.bytes_freed for p in finding.parts) and len(finding.parts) == 9
    assert said.found[1].edge.target == f"{llama}::model.layers.1"
    assert parsed(str(said.found[0].edge.command)).params["by"] == "influence"
    assert block_influence([str(llama)], text=str(text), samples=3, length=32, most=0.0).found == ()


def test_bare_weights_are_passed_over(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("sun " * 99)
    path = write(tmp_path / "m", model())
    said = block_influence([path], text=str(text))
    assert said.found == () and "config.json" in said.figures[path]["skipped"]
