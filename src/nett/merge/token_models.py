"""The models of a merge with their tables of tokens and their tokenizers; the tokenizer that the output gets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused, UsageError
from nett.core.layers import is_head, is_vocabulary
from nett.core.sidefiles import model_files, side_files
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_parts import Source
from nett.merge.recipe_tokens import WORDS, TokenizerRule
from nett.merge.references import opens_as
from nett.merge.token_rows import Known
from nett.merge.tokenizer_files import JSON, OF_THE_MODEL, TokenizerFiles, read_tokenizer, without_tokens
from nett.merge.tokenizer_union import union, with_tokens

# Further tables with a row for each token, beside those that nett.core.layers knows: heads in parts, mamba's embeddings.
_MORE = (
    "backbone.embeddings.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
    "cls.predictions.bias", "vocab_projector.weight", "vocab_projector.bias", "lm_head.decoder.weight",
    "lm_head.decoder.bias",
)  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class TokenModel:
    """One of the models: where the recipe names it, its tables and how many rows they have, its tokenizer. ``files``:
    its side files. ``own``: the tokenizer is its own, not taken to be the ground's."""

    source: Source
    checkpoint: Checkpoint
    tables: tuple[str, ...]
    rows: int
    files: Mapping[str, bytes]
    tokenizer: TokenizerFiles
    own: bool

    @property
    def name(self) -> str:
        return self.source.reference

    @property
    def known(self) -> Known:
        return Known(self.tokenizer.vocab, self.rows)


def is_token_table(name: str) -> bool:
    """Whether a tensor has a row, or an entry, for each token."""
    head = name.endswith(".bias") and is_head(f"{name.removesuffix('bias')}weight")
    return is_vocabulary(name) or head or name.endswith(_MORE)


def read_models(
    recipe: Recipe, rule: TokenizerRule, checkpoints: Mapping[str, Checkpoint]
) -> tuple[list[TokenModel], TokenModel, list[str]]:
    """The recipe's models in order; the one to start from, which is the base or the first; notes.

    A model without a tokenizer is taken to have that of the one to start from, which must have one.
    """
    notes: list[str] = []
    base = recipe.base.key if recipe.base is not None else recipe.sources[0].key
    order = sorted(recipe.sources, key=lambda source: source.key != base)
    read: dict[str, TokenizerFiles] = {}
    found: dict[str, TokenModel] = {}
    for source in order:
        checkpoint = checkpoints[source.key]
        tables = token_tables(checkpoint)
        files = model_files(checkpoint)[0]
        digest = digest_of(files)
        own = read.get(digest) or read_tokenizer(files, checkpoint.path)
        if own is None and not found:
            raise Refused(
                f"{source.reference!r} has no tokenizer, so there is none to start from",
                where=recipe.at(rule.place),
                hint=f"Its folder must hold a config.json and the files of a tokenizer ({JSON}).",
            )
        if own is None:
            notes.append(f"{source.reference} has no tokenizer: taken to have that of {order[0].reference}")
        else:
            read[digest] = own
        tokenizer = own or found[base].tokenizer
        rows = checkpoint.tensors[tables[0]].shape[0]
        found[source.key] = TokenModel(source, checkpoint, tables, rows, files, tokenizer, own is not None)
    return [found[source.key] for source in recipe.sources], found[base], notes


def token_tables(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of a model's tables of tokens, all of one length; Refused where there is none to move rows of."""
    tables = [n for n, t in checkpoint.tensors.items() if t.shape and is_token_table(n)]
    if not tables:
        raise Refused(
            "has no tensor called as embeddings are, so its vocabulary cannot be brought to another",
            where=checkpoint.path,
            hint="Leave the tokenizer out of the recipe if the models share one.",
        )
    sizes = {checkpoint.tensors[n].shape[0]: n for n in tables}
    if len(sizes) > 1:
        said = ", ".join(f"{n} has {size}" for size, n in sizes.items())
        raise Refused(f"has tables of tokens with different numbers of rows: {said}", where=checkpoint.path)
    for name in tables:
        if not checkpoint.tensors[name].dtype.is_float:
            what = checkpoint.tensors[name].stored
            raise Refused(f"{name} is stored as {what}, whose rows cannot be moved", where=checkpoint.path)
    return tuple(tables)


def digest_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        if name not in OF_THE_MODEL:
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def output_tokenizer(
    found: Sequence[TokenModel], ground: TokenModel, recipe: Recipe, rule: TokenizerRule
) -> tuple[TokenizerFiles, list[str]]:
    """The output's tokenizer, with the tokens that the recipe names, and notes."""
    notes = []
    if rule.source in WORDS:
        made = without_tokens(ground.tokenizer, ground.rows)
        if made is not ground.tokenizer:
            gone = len(ground.tokenizer.vocab) - len(made.vocab)
            notes.append(f"{ground.name} has no rows for {gone} token(s) of its tokenizer: they are left out")
        if rule.source == "union":
            others = [(m.name, m.tokenizer, m.rows) for m in found if m is not ground and m.own]
            made, more = union(made, others)
            notes += more
    else:
        made = named_tokenizer(found, recipe, rule)
    return with_tokens(made, [token for token in rule.tokens if token not in made.vocab]), notes


def named_tokenizer(found: Sequence[TokenModel], recipe: Recipe, rule: TokenizerRule) -> TokenizerFiles:
    """The tokenizer at the rule's path: that of a model of the merge, or of any folder."""
    key = Source(rule.source, rule.place, None).key
    for model in found:
        if model.source.key == key:
            return model.tokenizer
    path = Path(opens_as(rule.source))
    files = side_files(path) if path.is_dir() else {JSON: path.read_bytes()} if path.name == JSON else {}
    made = read_tokenizer(files, path)
    if made is None:
        raise UsageError(f"{rule.source!r} holds no tokenizer ({JSON})", where=recipe.at(rule.place))
    return made


def check_source(recipe: Recipe, rule: TokenizerRule) -> None:
    """UsageError where the rule's source is neither a word nor a path that exists."""
    key = Source(rule.source, rule.place, None).key
    if rule.source in WORDS or Path(opens_as(rule.source)).exists() or any(s.key == key for s in recipe.sources):
        return
    raise UsageError(
        f"the tokenizer {rule.source!r} is neither union nor base, nor a path that exists",
        where=recipe.at(rule.place),
        hint="Paths are relative to the working folder. nett downloads nothing.",
    )
