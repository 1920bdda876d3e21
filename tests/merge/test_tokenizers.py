"""Recipes with a tokenizer: which row each token gets, against the rules written token by token in plain NumPy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nett as package
from nett.core.checkpoint import open_checkpoint
from nett.merge.recipe import plan_recipe
from nett.merge.recipe_file import load_recipe
from nett.merge.tokenizer_files import read_tokenizer
from support.cli import nett
from support.recipes import write_recipe
from support.tensors import Array, read_tensors, write_tensors
from support.vocabularies import vocabulary_of, write_model, write_tokenizer

WORDS = ["<unk>", "a", "b", "c", "d", "e", "f", "g"]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base; a and b with other words; padded, base's words with four rows to spare."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base", WORDS, ["<unk>", "<s>"], seed=1)
    write_model(tmp_path / "a", ["<unk>", "b", "a", "x", "y"], ["<unk>", "<x>"], seed=2)
    write_model(tmp_path / "b", ["<unk>", "g", "x", "z"], ["<unk>", "<x>"], seed=3)
    write_model(tmp_path / "padded", WORDS, ["<unk>", "<s>"], seed=4, rows=13)
    return tmp_path


def recipe_of(*names: str, base: str | None = "base", weight: float = 1.0, **words: Any) -> dict[str, Any]:
    entries = [{"model": n, "parameters": {"weight": weight + i}} for i, n in enumerate(names)]
    return {"merge_method": "linear", **({"base_model": base} if base else {}), "models": entries} | words


def run(recipe: Any, *words: str) -> tuple[dict[str, Array], dict[str, Any]]:
    write_recipe(Path("recipe.yml"), recipe)
    shutil.rmtree("out", ignore_errors=True)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak", *words).succeeded()
    return read_tensors(Path("out")), json.loads(Path("out/nett.json").read_text())


def views(recipe: Any) -> tuple[dict[str, dict[str, Array]], dict[str, int]]:
    """What the merge reads: each model's tables in the output's order, and the output's vocabulary."""
    opened: list[Any] = []
    planned = plan_recipe(load_recipe(write_recipe(Path("recipe.yml"), recipe)), opened)
    try:
        found = {
            c.name: {n: c.values(n).reshape(c.tensors[n].shape) for n in c.tensors if n in TABLES}
            for c in planned.job.checkpoints
        }
        files = planned.job.donor.beside()
        assert files is not None
        Path("vocabulary").mkdir(exist_ok=True)
        Path("vocabulary/tokenizer.json").write_bytes(files["tokenizer.json"])
        return found, vocabulary_of(Path("vocabulary"))
    finally:
        for checkpoint in opened:
            checkpoint.close()


def by_the_rules(
    token: str,
    model: str,
    tables: Mapping[str, Array],
    vocabs: Mapping[str, Mapping[str, int]],
    base: str | None,
    source: Any = None,
    force: bool = False,
) -> Array:
    """One token's row in one model, as the table of fill rules says."""
    has = {m: tables[m][v[token]] for m, v in vocabs.items() if v.get(token, len(tables[m])) < len(tables[m])}
    if model in has and not force:
        return has[model]
    zeros = np.zeros_like(next(iter(tables.values()))[0])
    if source == {"kind": "zero"}:
        return zeros
    if isinstance(source, dict):
        table = tables[source["model"]]
        return table[source["token_id"]] if "token_id" in source else table[vocabs[source["model"]][source["token"]]]
    if source is not None:
        return has[source]
    if len(has) == 1:
        return next(iter(has.values()))
    if base in has:
        return has[base]
    return np.mean(list(has.values()), axis=0) if has else zeros


def check(recipe: Any, names: list[str], base: str | None, rules: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Every row of every model of a merge against the rules; rows of its own bit for bit."""
    found, out = views(recipe)
    vocabs = {n: vocabulary_of(Path(n)) for n in names}
    for table in TABLES:
        tables = {n: read_tensors(Path(n))[table] for n in names}
        for name in names:
            for token, number in out.items():
                said = (rules or {}).get(token) or {}
                wanted = by_the_rules(token, name, tables, vocabs, base, said.get("source"), said.get("force", False))
                row = found[name][table][number]
                if vocabs[name].get(token, 10**9) < len(tables[name]) and not said.get("force"):
                    assert np.array_equal(row, tables[name][vocabs[name][token]]), (name, token)
                np.testing.assert_allclose(row, wanted, rtol=1e-6, atol=1e-7, err_msg=f"{name} {token}")
    return out


NAMES = ["a", "b", "base"]
RULES: dict[str, Any] = {
    "a model": {"x": {"source": "b"}},
    "a model, forced": {"x": {"source": "b", "force": True}},
    "zeros": {"z": {"source": {"kind": "zero"}}},
    "zeros, forced": {"a": {"source": {"kind": "zero"}, "force": True}},
    "another token": {"y": {"source": {"kind": "model_token", "model": "base", "token": "c"}}},
    "another token, forced": {"y": {"source": {"kind": "model_token", "model": "base", "token": "c"}, "force": True}},
    "a row": {"<x>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}}},
    "a row, forced": {"<unk>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}, "force": True}},
    "a new token": {"<new>": {"source": {"kind": "model_token", "model": "a", "token": "x"}}},
    "a new token without a source": {"<new>": {}},
    "nothing": {},
}


@pytest.mark.parametrize("source", ["union", "base", "a", "words"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(models: Path, rule: str, source: str) -> None:
    """By the only model, by the base, by the mean, by zeros, and by what the recipe says of single tokens."""
    write_tokenizer(models / "words", ["<unk>", "x", "nowhere", "g", "z"])
    recipe = recipe_of(*NAMES, tokenizer={"source": source, "tokens": RULES[rule]})
    out = check(recipe, NAMES, "base", RULES[rule])
    wanted = {
        "union": set(WORDS) | {"<s>", "x", "y", "z", "<x>"},
        "base": {*WORDS, "<s>"},
        "a": {"<unk>", "b", "a", "x", "y", "<x>"},
        "words": {"<unk>", "x", "nowhere", "g", "z"},
    }[source]
    assert out.keys() == wanted | RULES[rule].keys()
    short = recipe_of(*NAMES, tokenizer_source=source)
    if rule == "nothing":
        assert views(short)[1] == out


def test_without_a_base_tokens_of_several_are_averaged(models: Path) -> None:
    out = check(recipe_of("a", "b", base=None, tokenizer_source="union"), ["a", "b"], None)
    assert list(out)[:5] == ["<unk>", "b", "a", "x", "y"]  # the first model's ids stay


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, tuple[list[str], list[str], int]]:
    """Words, special tokens and rows to spare (or too few) of two or three models."""
    pool = [*"abcdefgh", "<p>", "<q>"]
    made = {}
    for name in ("base", "one", "two")[: draw(st.integers(2, 3))]:
        words = draw(st.lists(st.sampled_from(pool), unique=True, min_size=1, max_size=8))
        special = draw(st.lists(st.sampled_from(["<s>", "<p>", "<t>"]), unique=True, max_size=2))
        count = len(dict.fromkeys((*words, *special, "<unk>")))
        made[name] = (["<unk>", *words], special, max(4, count + draw(st.integers(-1, 3))))
    return made


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vocabularies(), st.sampled_from(["union", "base", "one"]), st.booleans(), st.sampled_from([None, 1, 4]))
def test_any_vocabularies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any, source: str, based: bool, padding: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (name, (words, special, rows)) in enumerate(made.items()):
        shutil.rmtree(name, ignore_errors=True)
        write_model(tmp_path / name, words, special, seed=seed, rows=rows)
    recipe = recipe_of(
        *made, base="base" if based else None, tokenizer={"source": source, "pad_to_multiple_of": padding}
    )
    out = check(recipe, list(made), "base" if based else None)
    assert sorted(out.values()) == list(range(len(out)))
    found, _ = views(recipe)
    for tables in found.values():
        rows = len(tables[TABLES[0]])
        assert rows >= len(out) if padding is None else rows == -(-len(out) // padding) * padding
        if padding is not None:
            for table in tables.values():
                mean = table[: len(out)].astype(np.float64).mean(0)
                np.testing.assert_allclose(table[len(out) :], np.tile(mean, (rows - len(out), 1)), rtol=1e-5, atol=1e-6)


def test_rows_to_spare_are_kept(models: Path) -> None:
    """mergekit cuts such a vocabulary at its last token (its issue 425)."""
    write_model(models / "tune", WORDS, ["<unk>", "<s>"], seed=5, rows=13)
    recipe = recipe_of("padded", "tune", base="padded", tokenizer_source="base")
    found, receipt = run(recipe)
    one, two = read_tensors(Path("padded")), read_tensors(Path("tune"))
    for table in TABLES:
        np.testing.assert_allclose(found[table], (one[table] + 2 * two[table]) / 3, atol=1e-6)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 13
    assert any("4 rows beyond" in note and "kept" in note for note in receipt["notes"])
    assert Path("out/tokenizer.json").read_bytes() == Path("padded/tokenizer.json").read_bytes()
    # New tokens take the first of them; of the others a model without gets the base's.
    recipe = recipe_of("a", "padded", base="padded", tokenizer_source="union")
    found_views, out = views(recipe)
    assert [out[t] for t in ("x", "y", "<x>")] == [9, 10, 11]
    assert np.array_equal(found_views["a"][TABLES[0]][12], read_tensors(Path("padded"))[TABLES[0]][12])
    # Asked for plainly, they go.
    found, receipt = run(
        recipe_of("padded", "tune", base="padded", tokenizer={"source": "base", "pad_to_multiple_of": 1})
    )
    assert all(len(found[t]) == 9 for t in TABLES)
    assert any("4 row(s) of padded that stand for no token are left out" in n for n in receipt["notes"])


def test_fewer_rows_than_tokens(models: Path) -> None:
    """Tokens without a row are left out of the base's tokenizer, and settings do not bring them back."""
    settings_ = {"pad_token": "[PAD]", "unk_token": "<unk>", "additional_special_tokens": ["<s>", "[PAD]"]}
    write_model(models / "short", [*WORDS, "h"], ["<unk>", "<s>", "[PAD]"], seed=6, rows=9, settings=settings_)
    found, receipt = run(recipe_of("short", "base", base="short", tokenizer_source="base"))
    assert list(vocabulary_of(Path("out"))) == [*WORDS, "h"] and len(found[TABLES[0]]) == 9
    said = json.loads(Path("out/tokenizer_config.json").read_text())
    assert "pad_token" not in said and said["additional_special_tokens"] == [] and said["unk_token"] == "<unk>"
    assert any("no rows for 2 token(s)" in n for n in receipt["notes"])
    check(recipe_of("short", "base", base="base", tokenizer_source="union"), ["short", "base"], "base")


def test_cut_to_the_smallest_when_asked(models: Path) -> None:
    """Row by row, with the config and the tokenizer of the base; refused without the option."""
    recipe = recipe_of("a", "base")
    write_recipe(Path("recipe.yml"), recipe)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").failed(3, "tokenizer_source: union")
    found, receipt = run(recipe, "--unsafe-truncate-embeddings")
    for table in TABLES:
        one, two = read_tensors(Path("a"))[table], read_tensors(Path("base"))[table]
        np.testing.assert_allclose(found[table], (one + 2 * two[: len(one)]) / 3, atol=1e-6)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 6
    assert list(vocabulary_of(Path("out"))) == WORDS[:6]
    assert any("3 of the 9 rows of base are cut off" in n for n in receipt["notes"])
    nett("verify", "out", "--rerun").succeeded()


def test_ids_in_the_configs_follow(models: Path) -> None:
    """base's ids: <s> is 8. In a's tokenizer there is none, but its settings name another in that role."""
    config = {"bos_token_id": 8, "eos_token_id": [3, 8], "pad_token_id": 3, "image_token_id": 77}
    write_model(models / "base", WORDS, ["<unk>", "<s>"], seed=1, config=config)
    Path("base/generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "suppress_tokens": [1, 2], "top_k": 3})
    )
    write_tokenizer(models / "words", ["<unk>", "b", "a", "z"], ["<bos>"], {"bos_token": "<bos>"})
    run(recipe_of(*NAMES, tokenizer_source="words"))
    made = json.loads(Path("out/config.json").read_text())
    assert (made["bos_token_id"], made["eos_token_id"], made["pad_token_id"]) == (4, [], None)
    assert made["image_token_id"] == 77 and made["vocab_size"] == 5
    generation = json.loads(Path("out/generation_config.json").read_text())
    assert generation == {"eos_token_id": 2, "suppress_tokens": [2, 1], "top_k": 3}


def test_flags_of_added_tokens(models: Path) -> None:
    """The base's count first; plain tokens of the base that another has as added ones become such, with a note."""
    write_model(models / "c", ["<unk>", "q", "a"], ["<unk>", "g"], seed=7)
    write_model(models / "d", ["<unk>", "<s>", "<n>", "a"], ["<unk>", "<n>"], seed=8)
    _, receipt = run(recipe_of("c", "d", "base", tokenizer_source="union"))
    added = {t["content"]: t for t in json.loads(Path("out/tokenizer.json").read_text())["added_tokens"]}
    assert added["<s>"]["special"] and added["<n>"]["special"] and added["g"]["special"]
    assert not added["q"]["special"] and added["q"]["id"] == 9 and added["g"]["id"] == 7
    assert any("of c are matched as a whole" in n and "'g'" in n for n in receipt["notes"])


def test_tied_heads_shards_and_adapters(models: Path) -> None:
    """Whatever a model is stored as: the rows are looked up in what it comes to."""
    write_model(models / "tied", ["<unk>", "q", "a", "v"], seed=9, tied=True, shards=3)
    out = views(recipe_of("tied", "base", tokenizer_source="union"))
    table = read_tensors(Path("tied"))[TABLES[0]]
    for name in TABLES:
        assert np.array_equal(out[0]["base"][name][out[1]["q"]], table[1])
    lora = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["embed_tokens"], "bias": "none"}
    shape = read_tensors(Path("a"))[TABLES[0]].shape
    left, right = np.arange(shape[0], dtype=np.float32)[None] / 8, np.ones((shape[1], 1), np.float32)
    key = "base_model.model.model.embed_tokens.lora_embedding_{}"
    write_tensors(models / "lora" / "adapter_model.safetensors", {key.format("A"): left, key.format("B"): right})
    Path("lora/adapter_config.json").write_text(json.dumps(lora))
    found, vocabulary = views(recipe_of("a+lora", "base", tokenizer_source="union"))
    changed = read_tensors(Path("a"))[TABLES[0]] + left.T
    for token, number in vocabulary_of(Path("a")).items():
        np.testing.assert_allclose(found["lora"][TABLES[0]][vocabulary[token]], changed[number], atol=1e-6)


def test_threads_rerun_and_records(models: Path) -> None:
    recipe = recipe_of(*NAMES, tokenizer={"source": "union", "tokens": RULES["a row"], "pad_to_multiple_of": 8})
    first, receipt = run(recipe, "--threads", "1")
    second, _ = run(recipe, "--threads", "3")
    assert all(np.array_equal(first[n], second[n]) for n in first)
    nett("verify", "out", "--rerun").succeeded()
    record = receipt["vocabulary"]
    assert (record["source"], record["tokens"], record["rows"], record["mean_rows"]) == ("union", 13, 16, 3)
    assert sum(record["fills"].values()) == 13 and record["fills"]["as the recipe says"] == 1
    assert [m["kept"] + m["filled"] for m in record["models"]] == [13, 13, 13]
    said = nett("merge", "explain", "recipe.yml").succeeded().out
    assert "13 tokens, from the tokenizer of base" in said and "16 rows, 3 of them" in said
    plan = json.loads(nett("merge", "recipe.yml", "--out", "new", "--dry-run").succeeded().out)
    assert plan["vocabulary"]["fills"] == record["fills"] and not Path("new").exists()


def test_slices_look_for_tokens_in_all_models(models: Path) -> None:
    """The embeddings are those of the first slice's model, the head those of the last; each has a row for every token."""
    slices = [{"sources": [{"model": n, "layer_range": [0, 1]}]} for n in ("a", "b")]
    recipe = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    found, receipt = run(recipe)
    vocabulary = vocabulary_of(Path("out"))
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 2
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == len(vocabulary)
    vocabs = {n: vocabulary_of(Path(n)) for n in ("a", "b")}
    for model, table in zip(("a", "b"), TABLES, strict=True):
        tables = {n: read_tensors(Path(n))[table] for n in ("a", "b")}
        for token, number in vocabulary.items():
            assert np.array_equal(found[table][number], by_the_rules(token, model, tables, vocabs, None)), token
    assert receipt["vocabulary"]["rows"] == len(vocabulary)


def test_steps_hand_on_their_vocabulary(models: Path) -> None:
    """A second document is planned on the tokens that the first will have."""
    first = recipe_of("base", "a", tokenizer_source="union") | {"name": "both"}
    second = recipe_of("both", "b", base="both", tokenizer_source="union")
    write_recipe(Path("recipe.yml"), yaml.safe_dump(first) + "---\n" + yaml.safe_dump(second))
    plan = json.loads(nett("merge", "recipe.yml", "--out", "out", "--dry-run").succeeded().out)
    nett("merge", "recipe.yml", "--out", "out", "--no-speak").succeeded()
    vocabulary = vocabulary_of(Path("out"))
    assert list(vocabulary) == [*WORDS, "<s>", "x", "y", "<x>", "z"] and plan["vocabulary"]["tokens"] == len(vocabulary)
    receipt = json.loads(Path("out/nett.json").read_text())
    assert receipt["vocabulary"]["tokens"] == 13 and receipt["steps"][0]["vocabulary"]["tokens"] == 12
    vocabs = {n: vocabulary_of(Path(n)) for n in NAMES}
    for table in TABLES:
        tables = {n: read_tensors(Path(n))[table] for n in NAMES}
        two = {n: tables[n] for n in ("base", "a")}
        known = {n: vocabs[n] for n in ("base", "a")}
        union = [t for t in vocabulary if t != "z"]
        made = np.stack(
            [
                (by_the_rules(t, "base", two, known, "base") + 2 * by_the_rules(t, "a", two, known, "base")) / 3
                for t in union
            ]
        )
        tables |= {"both": made}
        vocabs |= {"both": {t: i for i, t in enumerate(union)}}
        pair, known = {n: tables[n] for n in ("both", "b")}, {n: vocabs[n] for n in ("both", "b")}
        wanted = [
            (by_the_rules(t, "both", pair, known, "both") + 2 * by_the_rules(t, "b", pair, known, "both")) / 3
            for t in vocabulary
        ]
        np.testing.assert_allclose(read_tensors(Path("out"))[table], np.stack(wanted), atol=1e-6)


def test_chat_templates_go_with_it(models: Path) -> None:
    template = "{% for m in messages %}<x>{{ m.content }}{% endfor %}"
    run(recipe_of(*NAMES, tokenizer_source="union", chat_template=template))
    assert Path("out/chat_template.jinja").read_text() == template
    assert "<x>" in vocabulary_of(Path("out"))


def test_sentencepiece_models(models: Path) -> None:
    """A model that has tokenizer.model alone: transformers converts it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("transformers")
    text = "the cat sat on the mat and the dog ran over the hill while a bird sang in the tree by the sea"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text[i:] for i in range(0, len(text), 3)]),
        model_prefix=str(models / "sp"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file="sp.model")
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    write_model(models / "slow", pieces, seed=7)
    Path("slow/tokenizer.json").unlink()
    Path("slow/tokenizer.model").write_bytes(Path("sp.model").read_bytes())
    Path("slow/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    found, out = views(recipe_of("slow", "base", tokenizer_source="union"))
    table = read_tensors(Path("slow"))[TABLES[0]]
    for number, piece in enumerate(pieces):
        assert np.array_equal(found["slow"][TABLES[0]][out[piece]], table[number]), piece
    assert set(out) == {*pieces, *WORDS, "<s>"}


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(models: Path) -> None:
    write_model(models / "bare", WORDS, ["<unk>", "<s>"], seed=9)
    Path("bare/tokenizer.json").unlink()
    found, receipt = run(recipe_of("bare", "base", tokenizer_source="union"))
    table = TABLES[0]
    np.testing.assert_allclose(
        found[table], (read_tensors(Path("bare"))[table] + 2 * read_tensors(Path("base"))[table]) / 3, atol=1e-6
    )
    assert any("bare has no tokenizer: taken to have that of base" in n for n in receipt["notes"])


def test_nothing_changes_where_all_is_one(models: Path) -> None:
    """One tokenizer everywhere: the same bytes as without a word of it."""
    write_model(models / "tune", WORDS, ["<unk>", "<s>"], seed=5)
    run(recipe_of("tune", "base"))
    plain = {f.name: f.read_bytes() for f in Path("out").iterdir() if not f.name.startswith("nett.")}
    for source in ("union", "base", "tune"):
        run(recipe_of("tune", "base", tokenizer_source=source))
        assert {f.name: f.read_bytes() for f in Path("out").iterdir() if not f.name.startswith("nett.")} == plain


def test_the_merged_model_speaks_with_the_merged_tokenizer(models: Path) -> None:
    """transformers' logits for a text equal those of a merge made by hand, token by token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run(recipe_of(*NAMES, tokenizer_source="union"))
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    vocabulary = tokenizer.get_vocab()
    assert vocabulary == vocabulary_of(Path("out"))
    tensors = {n: read_tensors(Path(n)) for n in NAMES}
    vocabs = {n: vocabulary_of(Path(n)) for n in NAMES}
    weights = dict(zip(NAMES, (1 / 6, 2 / 6, 3 / 6), strict=True))
    hand = {n: sum(weights[m] * tensors[m][n] for m in NAMES) for n in tensors["base"] if n not in TABLES}
    for table in TABLES:
        tables = {n: tensors[n][table] for n in NAMES}
        hand[table] = np.stack(
            [
                sum(weights[m] * by_the_rules(token, m, tables, vocabs, "base") for m in NAMES)
                for token in sorted(vocabulary, key=vocabulary.__getitem__)
            ]
        )
    made = transformers.AutoModelForCausalLM.from_pretrained("out")
    again = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained("out"))
    again.load_state_dict({n: torch.tensor(np.asarray(v, np.float32)) for n, v in hand.items()})
    ids = tokenizer("a x g y <x> z <s> b", return_tensors="pt").input_ids
    assert [tokenizer.convert_ids_to_tokens(int(i)) for i in ids[0]] == ["a", "x", "g", "y", "<x>", "z", "<s>", "b"]
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(ids).logits, again.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    with open_checkpoint("out") as written:
        assert written.tensors[TABLES[0]].shape[0] == len(vocabulary)
    # What settings name and tokenizer.json lacks, transformers adds when it loads: so does nett, to the same ids.
    said = {
        "pad_token": "[PAD]",
        "additional_special_tokens": ["<u>", "<s>"],
        "added_tokens_decoder": {"20": {"content": "<late>"}, "9": {"content": "<q>", "special": True}},
    }
    write_model(models / "named", WORDS, ["<unk>", "<s>"], seed=7, rows=13, settings=said)
    known = transformers.AutoTokenizer.from_pretrained("named").get_vocab()
    read = read_tokenizer({f.name: f.read_bytes() for f in Path("named").glob("tokenizer*")}, Path("named"))
    assert read is not None and read.vocab == known and known["[PAD]"] == 11
    run(recipe_of("a", "named", base="named", tokenizer_source="union"))
    loaded = transformers.AutoTokenizer.from_pretrained("out").get_vocab()
    assert loaded == vocabulary_of(Path("out")) and all(loaded[t] == n for t, n in known.items())
    assert len(read_tensors(Path("out"))[TABLES[0]]) == max(loaded.values()) + 1


def test_the_published_schema_takes_what_runs(models: Path) -> None:
    text = (Path(package.__file__).parents[2] / "docs" / "recipe.schema.json").read_text()
    schema = jsonschema.Draft202012Validator(json.loads(text))  # made once: it is large
    tokens = {token: rule for rules in RULES.values() for token, rule in rules.items()}
    good = recipe_of(*NAMES, tokenizer={"source": "union", "tokens": tokens, "pad_to_multiple_of": 2})
    schema.validate(good)
    schema.validate(recipe_of(*NAMES, tokenizer_source={"model": {"path": "a"}}))
    run(good)
    for bad in (
        {"sorce": "union"},
        {"tokens": {"x": {"source": {"kind": "zeros"}}}},
        {"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}},
        {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token": "b", "token_id": 1}}}},
        {"pad_to_multiple_of": 0},
    ):
        with pytest.raises(jsonschema.ValidationError):
            schema.validate(recipe_of(*NAMES, tokenizer=bad))
        write_recipe(Path("bad.yml"), recipe_of(*NAMES, tokenizer=bad))
        assert nett("merge", "bad.yml", "--out", "other").code == 2
