"""nett.load(…, as_model=True): the model that from_pretrained makes of the restored folder, streamed from where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nett
from nett.core.errors import Refused
from nett.core.tiny import fine_tune_of, write_llama
from nett.store.add import add
from nett.store.restoring import restore_model
from support.forge import forge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def same(left: object, right: object) -> None:
    """Weights, buffers, types, ties, generation and logits, bit for bit."""
    for part in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(left, part)()), dict(getattr(right, part)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and ours[name].device.type == "cpu"
            assert torch.equal(ours[name], tensor), name
    assert left.generation_config == right.generation_config  # type: ignore[attr-defined]
    assert type(left) is type(right) and left.training == right.training is False  # type: ignore[attr-defined]
    ids = torch.arange(1, 21).reshape(2, 10)
    with torch.no_grad():
        one, other = left(ids).logits, right(ids).logits  # type: ignore[operator]
    assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "tied", "shards"), [("BF16", True, 1), ("F32", False, 3), ("F16", True, 2)])
def test_a_model_from_the_store(tmp_path: Path, dtype: str, tied: bool, shards: int) -> None:
    base = write_llama(tmp_path / "base", layers=2, dtype=dtype, tied=tied, shards=shards)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.5, "do_sample": True, "max_new_tokens": 7}
    (base / "generation_config.json").write_text(json.dumps(settings))
    tuned = fine_tune_of(base, tmp_path / "tuned", seed=1)
    store = tmp_path / "store"
    add([str(base), str(tuned)], into=str(store))
    restore_model(store, "tuned", tmp_path / "out")
    streamed = nett.load(store / "tuned", as_model=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    same(streamed, theirs)
    same(nett.load(tuned, as_model=True), theirs)
    assert streamed.generation_config.max_new_tokens == 7
    ours, head = streamed.get_input_embeddings().weight, streamed.get_output_embeddings().weight
    assert (ours.data_ptr() == head.data_ptr()) == tied
    assert streamed.name_or_path == str(store / "tuned")
    words = nett.load(store / "tuned", as_tokenizer=True)("ab cd.").input_ids
    assert words == transformers.AutoTokenizer.from_pretrained(str(tuned))("ab cd.").input_ids
    assert not list((store / "leases").iterdir())


def test_a_checkpoint_of_a_run(tmp_path: Path) -> None:
    """A folder inside a stored model, by its path; the model itself has no weights of its own."""
    run = tmp_path / "run"
    first = write_llama(run / "checkpoint-1", layers=1)
    fine_tune_of(first, run / "checkpoint-2", seed=1)
    store = tmp_path / "store"
    add([str(run)], into=str(store))
    streamed = nett.load(store / "run" / "checkpoint-2", as_model=True)
    same(streamed, transformers.AutoModelForCausalLM.from_pretrained(str(run / "checkpoint-2")))
    loaded, plain = nett.load(store / "run" / "checkpoint-1"), nett.load(first)
    assert all((loaded[n] == plain[n]).all() for n in plain)
    with pytest.raises(Refused, match="Name one of its folders"):
        nett.load(store / "run", as_model=True)
    with pytest.raises(Refused, match="holds no model 'run/checkpoint-3'"):
        nett.load(store / "run" / "checkpoint-3")


def test_an_encoder(tmp_path: Path) -> None:
    """The class that the config names, not always a language model; its buffers too."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    transformers.BertModel(config).eval().save_pretrained(tmp_path / "bert")
    add([str(tmp_path / "bert")], into=str(tmp_path / "store"))
    streamed, theirs = (nett.load(p, as_model=True) for p in (tmp_path / "store" / "bert", tmp_path / "bert"))
    assert type(streamed) is type(theirs) is transformers.BertModel
    ids = torch.arange(1, 21).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(streamed(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_what_has_no_config(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", layers=1)
    (base / "config.json").unlink()
    add([str(base)], into=str(tmp_path / "store"))
    with pytest.raises(Refused, match=r"no config\.json"):
        nett.load(tmp_path / "store" / "base", as_model=True)


@pytest.mark.slow
def test_memory_is_the_models(tmp_path: Path) -> None:
    """The peak above the start is the weights once, not twice."""
    base = write_llama(tmp_path / "base", layers=4, hidden=512, heads=8, kv_heads=8, inter=2048, vocab=8000, tied=True)
    tuned = fine_tune_of(base, tmp_path / "tuned", seed=1)
    add([str(base), str(tuned)], into=str(tmp_path / "store"))
    nbytes = (tuned / "model.safetensors").stat().st_size
    peak = forge().run("support.work:load_model", path=str(tmp_path / "store" / "tuned"), warm=str(_pico(tmp_path)))
    assert peak < 1.35 * nbytes + (24 << 20), (peak, nbytes)


def _pico(folder: Path) -> Path:
    add([str(write_llama(folder / "pico", layers=1))], into=str(folder / "warm"))
    return folder / "warm" / "pico"
