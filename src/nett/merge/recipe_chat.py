"""``chat_template``: one of mergekit's names, the text itself, or ``auto`` for the one that most models have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused, UsageError, did_you_mean
from nett.core.sidefiles import model_files
from nett.merge.chat_templates import TEMPLATES

if TYPE_CHECKING:
    from nett.merge.job import Edit
    from nett.merge.recipe_file import Recipe

AUTO = "auto"
FILE = "chat_template.jinja"  # where transformers looks first; it then ignores what else says one
_CONFIG = "tokenizer_config.json"
_ELSEWHERE = ("chat_template.json",)
_VOCABULARIES = ("tokenizer", "vocab.", "merges.txt", "spiece.model", "sentencepiece")
_SHORTEST = 20  # mergekit takes nothing shorter for a template's text


def check_template(recipe: Recipe) -> None:
    """UsageError where ``chat_template`` is neither a name nor the text of a template that can be read."""
    given, place = recipe.chat_template, ("chat_template",)
    if given is None or given == AUTO or given in TEMPLATES:
        return
    if "{" not in given or len(given) < _SHORTEST:
        near = did_you_mean(given, [AUTO, *TEMPLATES])
        raise UsageError(
            f"chat_template = {given!r} is neither a name nor the text of a template.{near}",
            where=recipe.at(place),
            hint=f"Names: {', '.join([AUTO, *TEMPLATES])}. A text is Jinja, with {{{{ }}}} or {{% %}}.",
        )
    if wrong := _syntax_error(given):
        line, message = wrong
        raise UsageError(
            f"chat_template is no template that transformers can read: {message} (line {line} of the template)",
            where=recipe.at(place),
        )


def _syntax_error(text: str) -> tuple[int, str] | None:
    """Line and message of a template that Jinja cannot parse with what transformers adds to it."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2's own protocol)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], autoescape=False)
    try:
        environment.parse(text)
    except jinja2.TemplateSyntaxError as error:
        return error.lineno, error.message or "it is not valid"
    return None


def plan_template(
    recipe: Recipe, giver: Checkpoint, models: Sequence[Checkpoint]
) -> tuple[tuple[Edit, ...], list[str]]:
    """What writes the template beside the weights, and what a reader should know; Refused without a tokenizer."""
    given = recipe.chat_template
    if given is None:
        return (), []
    if not any(name.startswith(_VOCABULARIES) for name in _files(giver)):
        raise Refused(
            f"chat_template needs a tokenizer to go with, and {giver.path} has none",
            where=recipe.at(("chat_template",)),
            hint="Leave it out, or name a base_model that has a tokenizer.",
        )
    if given != AUTO:
        text, said = TEMPLATES.get(given, given), f"chat template: {given}" if given in TEMPLATES else ""
    else:
        found = [t.strip() for model in models if (t := template_of(_files(model)))]
        if not found:
            return (), ["chat_template: auto has no effect, since no model has a chat template"]
        ((text, count),) = Counter(found).most_common(1)
        said = f"chat template: that of {count} of {len(models)} models"

    def edit(files: dict[str, bytes]) -> dict[str, bytes]:
        return with_template(files, text)

    return (edit,), [said] if said else []


def _files(model: Checkpoint) -> dict[str, bytes]:
    return model_files(model)[0] if model.config() is not None else {}


def template_of(files: dict[str, bytes]) -> str | None:
    """The (default) chat template among the files of a model, where transformers finds it."""
    if FILE in files:
        return files[FILE].decode("utf-8", errors="replace")
    try:
        given = json.loads(files.get(_CONFIG, b"{}")).get("chat_template")
    except (ValueError, AttributeError):
        return None
    if isinstance(given, list):
        given = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
    if isinstance(given, dict):
        given = given.get("default")
    return given if isinstance(given, str) and given else None


def with_template(files: dict[str, bytes], text: str) -> dict[str, bytes]:
    """``files`` with one chat template, as transformers saves it: a file of its own, and none in the config."""
    made = {name: content for name, content in files.items() if name not in _ELSEWHERE}
    made[FILE] = text.encode()
    if _CONFIG in made:
        config = json.loads(made[_CONFIG])
        if config.pop("chat_template", None) is not None:
            made[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return dict(sorted(made.items()))
