"""Models of different vocabularies brought to one: what their tokenizers say becomes rows of their tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.rows import RowMap, RowsCheckpoint, Tables
from nett.core.sidefiles import model_files
from nett.merge.job import operand
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_tokens import TokenizerRule
from nett.merge.token_ids import with_ids, with_size
from nett.merge.token_models import TokenModel, check_source, output_tokenizer, read_models, token_tables
from nett.merge.token_rows import TokenRows, token_rows
from nett.merge.token_rules import row_rules
from nett.merge.tokenizer_files import OF_THE_MODEL, TokenizerFiles, as_json, read_tokenizer, without_tokens
from nett.merge.vocabulary_words import vocabulary_notes, vocabulary_record


@final
@dataclass(frozen=True)
class Vocabulary:
    """The output's vocabulary. ``models`` read their tables through it. ``record``: for plans and receipts, where
    tokens were compared."""

    models: Mapping[str, Checkpoint]
    record: Mapping[str, Any] | None
    notes: tuple[str, ...]


def unify(recipe: Recipe, rule: TokenizerRule, models: Mapping[str, Checkpoint]) -> Vocabulary:
    """Bring ``models`` (key -> checkpoint) to one vocabulary.

    Raises UsageError where the rule names what is not there, Refused where a model has no tokenizer or table to go by.
    """
    check_source(recipe, rule)
    found, ground, notes = read_models(recipe, rule, models)
    made, more = output_tokenizer(found, ground, recipe, rule)
    notes += more
    explicit, forced, more = row_rules(found, recipe, rule)
    notes += more
    rows = token_rows(
        made.vocab,
        [m.known for m in found],
        base=found.index(ground) if recipe.base is not None else None,
        explicit=explicit,
        forced=forced,
        pad_to_multiple_of=rule.pad_to_multiple_of,
    )
    notes += vocabulary_notes(found, ground, rows, made, rule)
    record = vocabulary_record(found, rows, made, rule)
    return Vocabulary(_views(found, ground, rows, made), record, tuple(notes))


def _views(
    found: Sequence[TokenModel], ground: TokenModel, rows: TokenRows, made: TokenizerFiles
) -> dict[str, Checkpoint]:
    """Each model with its tables in the output's order; the ground with the output's config and tokenizer files."""
    donors, tables = tuple(m.checkpoint for m in found), Tables()
    views: dict[str, Checkpoint] = {}
    for model, own in zip(found, rows.own, strict=True):
        stays = rows.rows == model.rows and bool((own == range(model.rows)).all())
        names = {
            table: [operand(donor, table, model.checkpoint).name for donor in donors]
            for table in ([] if stays else model.tables)
        }
        config = model.checkpoint.config()
        files = None
        if model is ground:
            ids = with_ids(ground.tokenizer, made)
            config = ids(with_size(config, rows.rows)) if config is not None else None
            files = {n: c for n, c in ground.files.items() if n in OF_THE_MODEL}
            if config is not None:
                files["config.json"] = as_json(config)
            if "generation_config.json" in files:
                files["generation_config.json"] = as_json(ids(json.loads(files["generation_config.json"])))
            files |= {n: c for n, c in made.files.items() if n not in OF_THE_MODEL}
        views[model.source.key] = RowsCheckpoint(
            model.checkpoint,
            RowMap(own, rows.given, donors, rows.mean_from),
            names,
            config=config,
            beside=dict(sorted(files.items())) if files is not None else None,
            tables=tables,
        )
    return views


def truncated(recipe: Recipe, models: Mapping[str, Checkpoint]) -> Vocabulary:
    """Cut the tables of all models to the rows of the smallest, as if one number stood for one token in all of them.

    The config and the tokenizer of the model that gives them are cut with them.
    """
    tables = {key: token_tables(checkpoint) for key, checkpoint in models.items()}
    rows = {key: models[key].tensors[names[0]].shape[0] for key, names in tables.items()}
    least = min(rows.values())
    giver = recipe.base.key if recipe.base is not None else recipe.sources[0].key
    own = np.arange(least, dtype=np.int32)
    views: dict[str, Checkpoint] = dict(models)
    notes = []
    for source in recipe.sources:
        key, model = source.key, models[source.key]
        if rows[key] == least:
            continue
        cut = f"{rows[key] - least:,} of the {rows[key]:,} rows of {source.reference} are cut off"
        notes.append(f"{cut} (unsafe_truncate_embeddings): right only if one number is one token in all models")
        config, files = model.config(), None
        if key == giver and config is not None:
            config, files = with_size(config, least), model_files(model)[0]
            tokenizer = read_tokenizer(files, model.path)
            kept = without_tokens(tokenizer, least).files if tokenizer is not None else {}
            files = (
                {n: c for n, c in files.items() if n in OF_THE_MODEL} | dict(kept) | {"config.json": as_json(config)}
            )
        rows_of = RowMap(own, np.full((1, least), -1, np.int32), (model,), least)
        views[key] = RowsCheckpoint(model, rows_of, {n: [n] for n in tables[key]}, config=config, beside=files)
    return Vocabulary(views, None, tuple(notes))
