"""Documents in passages, retrieval by vectors and by words, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import nett
from nett.cache.retrieving import Index, encoder_of, read_passages
from nett.cli.app import run
from nett.core.errors import Refused
from nett.core.tiny import write_llama

TEXT = "the sun rose over a road and river dust lay on house tree bird sang in field of corn"
WORDS = TEXT.split()


class Words:
    """A tokenizer of one token a word; the end of a line is one, too."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return type("Ids", (), {"input_ids": [len(w) for w in text.replace("\n", " n ").split()]})


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rag")
    rng = np.random.default_rng(0)
    docs = folder / "docs"
    docs.mkdir()
    for k in range(3):
        sentences = [" ".join(rng.choice(WORDS, 6)) + "." for _ in range(6)]
        (docs / f"{k}.txt").write_text(" ".join(sentences))
    (docs / "bird.md").write_text("Quails hide.")
    return write_llama(folder / "llama", layers=2, hidden=32, dtype="F32"), docs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of kilobytes with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


def test_passages_are_whole_sentences_of_at_most_so_many_tokens(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One two three. Four five six.\n\nSeven eight nine ten eleven twelve thirteen. One two three. End")
    found = read_passages([str(file)], Words(), 7)
    assert [p.text for p in found] == [
        "One two three. Four five six.", "Seven eight nine ten eleven twelve", "thirteen. One two three. End",
    ]  # fmt: skip
    assert all(len(p.ids) <= 7 for p in found) and [p.number for p in found] == [0, 1, 2]
    assert len(read_passages([str(file), str(file)], Words(), 7)) == 3, "equal passages are one"


def test_documents_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such document"):
        read_passages([str(tmp_path / "no.txt")], Words(), 8)
    with pytest.raises(Refused, match="holds no text"):
        read_passages([str(tmp_path)], Words(), 8)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(Refused, match="holds no text"):
        read_passages([str(tmp_path)], Words(), 8)
    with pytest.raises(Refused, match=r"no config\.json"):
        encoder_of(tmp_path, "cpu")


def test_words_retrieve() -> None:
    index = Index(["the sun rose", "a bird sang in the field", "dust lay on the house"], None)
    near = index.nearest("which bird sang?", 2)
    assert near[0][0] == 1 and near[0][1] > near[1][1]


def test_an_encoder_retrieves(encoder: Path) -> None:
    """Vectors are means over the tokens that are no padding, of length one, whatever stands beside in a batch."""
    embed = encoder_of(encoder, "cpu")
    texts = ["the sun rose over a road", "bird", "dust lay on house"]
    vectors = embed(texts)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].numpy()
        mean = states.mean(0)
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    found = Index(texts, embed).nearest("dust lay on house", 3)
    assert found[0][0] == 2 and found[0][1] == pytest.approx(1, abs=1e-5)


def test_the_command(bed: tuple[Path, Path], encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, docs = bed
    (tmp_path / "questions.txt").write_text("the bird?\n\nthe sun and the road?\nthe bird?\n")
    told_file, store = tmp_path / "told.json", tmp_path / "chunks"
    words = ["cache", "rag", str(docs), "--questions", str(tmp_path / "questions.txt"), "--model", str(model), "--encoder",
             str(encoder), "--chunk", "16", "--top", "2", "--tokens", "4", "--system", "read:", "--store", str(store), "--threads", "1",
             "--json", str(told_file)]  # fmt: skip
    assert run(words) == 0
    said = capsys.readouterr().out
    assert "token-layers" in said and "first token after" in said and "KL to full recomputation" in said
    told = json.loads(told_file.read_text())
    assert len(told["questions"]) == 3
    first, _, third = told["questions"]
    assert first["ledger"]["share"] == 1.0 and first["kl"] == pytest.approx(0, abs=1e-6)
    assert third["ledger"]["new"] == 0 and third["ledger"]["share"] < 0.6
    assert third["answer"] == third["full_answer"] == first["answer"] and third["kl"] == pytest.approx(0, abs=1e-6)
    assert [p["text"] for p in first["passages"]] == [p["text"] for p in third["passages"]]
    assert len(list(store.iterdir())) == told["store"]["variants"]
    assert run(words) == 0
    again = json.loads(told_file.read_text())["questions"][0]
    assert again["ledger"]["share"] < 0.6 and {p["tier"] for p in again["ledger"]["parts"]} == {"disk"}
    assert again["kl"] == pytest.approx(0, abs=1e-6)


def test_ahead_and_words(bed: tuple[Path, Path]) -> None:
    model, docs = bed
    told = nett.cache.rag(
        [str(docs)],
        question="where do quails hide?",
        model=model,
        chunk=16,
        top=2,
        tokens=3,
        ahead=True,
        threads=1,
        system="read:",
    )
    (row,) = told["questions"]
    assert row["ledger"]["new"] == 0 and row["passages"][-1]["document"].endswith("bird.md"), "the nearest stands last"
    assert told["store"]["chunks"] >= told["passages"] and row["kl"] >= -1e-6


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "name documents"),
        (["DOCS"], 2, "needs a language model"),
        (["DOCS", "--model", "MODEL"], 2, "needs a question"),
        (["DOCS", "--model", "MODEL", "--questions", "none.txt"], 3, "no such file"),
        (["nowhere", "--model", "MODEL", "--question", "x"], 3, "no such document"),
        (["DOCS", "--model", "MODEL", "--question", "x", "--encoder", "DOCS"], 3, "no config.json"),
        (["DOCS", "--model", "MODEL", "--question", "x", "--top", "20", "--tokens", "4"], 3, "positions"),
        (["DOCS", "--model", "MODEL", "--question", "x", "--memory", "much"], 2, "is not a size"),
    ],
)
def test_bad_input(
    bed: tuple[Path, Path], words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, docs = bed
    put = {"DOCS": str(docs), "MODEL": str(model)}
    assert run(["cache", "rag", *(put.get(w, w) for w in words)]) == code
    assert said in capsys.readouterr().err


def test_the_maker_is_used_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "cache-craft", "model"]) == 2
    assert "nett cache rag" in capsys.readouterr().err
