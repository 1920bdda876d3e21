"""``chat_template``: mergekit's names render what mergekit's templates render; texts and ``auto``; as transformers
reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nett.core.tiny import write_llama
from nett.merge.chat_templates import TEMPLATES
from support.cli import nett
from support.recipes import write_recipe

STORED = json.loads(Path(__file__).with_name("chat-templates-mergekit-0.1.5.json").read_text())


def rendered(template: str, messages: Any, prompt: bool) -> str:
    """As transformers renders it: blocks trimmed, ``raise_exception`` at hand."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
        )
    except jinja2.TemplateError:
        return "TemplateError"


@pytest.mark.parametrize("key", STORED["renderings"])
def test_names_render_what_mergekits_render(key: str) -> None:
    name, conversation, prompt = key.split("/")
    found = rendered(TEMPLATES[name], STORED["conversations"][conversation], prompt == "True")
    assert found == STORED["renderings"][key]


def test_every_name_was_compared() -> None:
    assert {key.split("/")[0] for key in STORED["renderings"]} == set(TEMPLATES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models: b and c with one template, c's in a list; a with another, in its config."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write_llama(name, seed=seed)
    for name, template in (
        ("a", "{# a #}" * 5),
        ("c", [{"name": "default", "template": "{# most #}"}, {"name": "tool", "template": "x"}]),
    ):
        file = Path(name, "tokenizer_config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    Path("b/chat_template.jinja").write_text("{# most #}\n")
    return tmp_path


def merge(template: Any, *words: str) -> dict[str, Any]:
    listed = "".join(f"  - {{model: {m}, parameters: {{weight: 1}}}}\n" for m in "abc")
    text = json.dumps(template)
    write_recipe(Path("r.yml"), f"merge_method: linear\nmodels:\n{listed}chat_template: {text}\n")
    nett("merge", "r.yml", "--out", "out", "--no-speak", "--overwrite", *words).succeeded()
    receipt: dict[str, Any] = json.loads(Path("out/nett.json").read_text())
    return receipt


TEXT = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"


@pytest.mark.parametrize(("given", "wanted"), [("chatml", TEMPLATES["chatml"]), (TEXT, TEXT), ("auto", "{# most #}")])
def test_written_where_transformers_reads_it(given: str, wanted: str, folder: Path) -> None:
    receipt = merge(given)
    assert Path("out/chat_template.jinja").read_text() == wanted
    assert "chat_template" not in json.loads(Path("out/tokenizer_config.json").read_text())
    assert {o["path"] for o in receipt["outputs"]} >= {"chat_template.jinja", "tokenizer_config.json", "tokenizer.json"}
    if given == "auto":
        assert "chat template: that of 2 of 3 models" in receipt["notes"]
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained("out").chat_template.strip() == wanted.strip()


def test_auto_without_any_is_said(folder: Path) -> None:
    for name in "ac":
        file = Path(name, "tokenizer_config.json")
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))
    Path("b/chat_template.jinja").unlink()
    assert any("auto has no effect" in note for note in merge("auto")["notes"])
    assert not Path("out/chat_template.jinja").exists()


def test_without_a_tokenizer_it_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("a", name).unlink()
    write_recipe(Path("r.yml"), "merge_method: passthrough\nmodels: [{model: a}]\nchat_template: chatml\n")
    nett("merge", "r.yml", "--out", "out").failed(3, "r.yml:3 merge/passthrough", "needs a tokenizer", "a has none")
