"""What there is to say of a vocabulary's plan: notes for the reader, a record for receipts, lines for explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.merge.recipe_tokens import WORDS, TokenizerRule
from nett.merge.token_models import TokenModel, digest_of
from nett.merge.token_rows import TokenRows
from nett.merge.tokenizer_files import TokenizerFiles


def vocabulary_notes(
    found: Sequence[TokenModel], ground: TokenModel, rows: TokenRows, made: TokenizerFiles, rule: TokenizerRule
) -> list[str]:
    """What a reader should know before the tables are written: rows without a token, and what is left behind."""
    notes = []
    if rows.rows > rows.tokens and rule.pad_to_multiple_of is None:
        notes.append(
            f"{rows.rows - rows.tokens:,} rows beyond the {rows.tokens:,} of the tokens are kept, as in the models"
            " (pad_to_multiple_of: 1 would drop them)"
        )
    if none := rows.fills["zeros, since none has it"]:
        notes.append(f"{none:,} token(s) that no model has a row for get zeros")
    for model, own in zip(found, rows.own, strict=True):
        name, vocab = model.name, model.tokenizer.vocab
        lost = sum(number < model.rows and token not in made.vocab for token, number in vocab.items())
        if lost:
            notes.append(f"{lost:,} token(s) of {name} are not in the output's vocabulary")
        beyond = sum(number >= model.rows for number in vocab.values())
        if beyond and not (rule.source in WORDS and model is ground):
            notes.append(f"{name} has no rows for {beyond:,} token(s) of its tokenizer")
        last = max((n for n in vocab.values() if n < model.rows), default=-1) + 1
        stay = own[last : model.rows]
        if model.rows > last and not (stay == range(last, last + stay.size)).any():
            notes.append(f"{model.rows - last:,} row(s) of {name} that stand for no token are left out")
    return notes


def vocabulary_record(
    found: Sequence[TokenModel], rows: TokenRows, made: TokenizerFiles, rule: TokenizerRule
) -> dict[str, Any]:
    models = []
    for model, own in zip(found, rows.own, strict=True):
        tokens = own[: rows.tokens]
        models.append(
            {
                "model": model.name,
                "rows": model.rows,
                "tokens": len(model.tokenizer.vocab),
                "kept": int((tokens >= 0).sum()),
                "filled": int((tokens < 0).sum()),
                "tokenizer_sha256": digest_of(model.files) if model.own else None,
            }
        )
    return {
        "source": rule.source,
        "tokenizer_of": str(made.where),
        "tokens": len(made.vocab),
        "rows": rows.rows,
        "rows_without_token": rows.rows - len(made.vocab),
        "mean_rows": rows.rows - rows.mean_from,
        "fills": dict(rows.fills),
        "models": models,
        "output_sha256": digest_of(made.files),
    }


def vocabulary_lines(record: Mapping[str, Any]) -> list[str]:
    """The vocabulary's plan: whose tokenizer, how many rows, and where those of each model come from."""
    fills = [f"{count:,} {rule}" for rule, count in record["fills"].items() if count]
    without = record["rows_without_token"]
    means = f", {record['mean_rows']:,} of them the mean of the others" if record["mean_rows"] else ""
    lines = [
        f"  tokens   {record['source']}: {record['tokens']:,} tokens, from the tokenizer of {record['tokenizer_of']}",
        f"           {record['rows']:,} rows, {without:,} of them without a token{means}",
        f"           {'; '.join(fills)}",
    ]
    for model in record["models"]:
        lines.append(
            f"           {model['model']}: {model['rows']:,} rows, {model['kept']:,} tokens keep theirs,"
            f" {model['filled']:,} are filled"
        )
    return lines
