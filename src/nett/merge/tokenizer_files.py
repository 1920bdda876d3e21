"""Tokenizers as folders hold them: read as transformers would, cut to the rows there are, extended, written again."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint.json_text import json_object
from nett.core.errors import Refused, missing_extra

JSON, SETTINGS, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# What older libraries read instead of tokenizer.json: it would know nothing of tokens that were added or left out.
SLOW = frozenset(
    ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model", "spiece.model",
     "sentencepiece.bpe.model")
)  # fmt: skip
OF_THE_MODEL = frozenset(("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"))
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@final
@dataclass(frozen=True)
class TokenizerFiles:
    """One tokenizer: its files by name, the ``tokenizers`` library's object, token -> id."""

    where: Path
    files: Mapping[str, bytes]
    fast: Any
    vocab: Mapping[str, int]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocab.values(), default=-1) + 1

    def added(self) -> dict[int, Any]:
        """id -> AddedToken, by id."""
        return dict(sorted(self.fast.get_added_tokens_decoder().items()))

    def role(self, role: str) -> str | None:
        """The token that ``bos_token`` or another role names."""
        return _roles(self.files).get(role)


def read_tokenizer(files: Mapping[str, bytes], where: Path) -> TokenizerFiles | None:
    """The tokenizer that lies among a model's side files; None where there is none, Refused where it is broken."""
    own = {name: content for name, content in files.items() if name not in OF_THE_MODEL}
    if JSON not in own:
        if not SLOW & own.keys():
            return None
        own = _converted(files, where)
    json_object(own[JSON], where / JSON)
    fast = loaded(own[JSON], where)
    vocab = fast.get_vocab(with_added_tokens=True)
    missing = [token for token in _named(own, where) if token.content not in vocab]
    if missing:
        fast.add_tokens(missing)
        vocab = fast.get_vocab(with_added_tokens=True)
    return TokenizerFiles(where, own, fast, vocab)


def loaded(content: bytes, where: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("tokenizers", "models", "A recipe with a tokenizer") from error
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing more special
        raise Refused(f"is not a tokenizer that can be read: {str(error)[:200]}", where=where / JSON) from error


def _converted(files: Mapping[str, bytes], where: Path) -> dict[str, bytes]:
    """The files of a slow tokenizer (sentencepiece, vocab.txt) as transformers converts it."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "models", f"The tokenizer of {where}, which has no {JSON},") from error
    with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as made:
        for name, content in files.items():
            (Path(given) / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # transformers' own
                transformers.AutoTokenizer.from_pretrained(given).save_pretrained(made)
            found = {file.name: file.read_bytes() for file in sorted(Path(made).iterdir())}
            if JSON not in found:
                raise ValueError(f"the conversion gives no {JSON}")
            return found
        except Exception as error:
            # Whatever transformers makes of files that it does not know.
            first = (str(error).splitlines() or [""])[0][:200]
            raise Refused(
                f"has a tokenizer without {JSON}, and transformers cannot convert it: {type(error).__name__}: {first}",
                where=where,
                hint=f"Save it as a fast tokenizer: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes {JSON}.",
            ) from error


def _settings(files: Mapping[str, bytes], where: Path, name: str) -> dict[str, Any]:
    return json_object(files[name], where / name) if name in files else {}


def _text(token: Any) -> str | None:
    """A token named as text or as ``{"content": …}``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _roles(files: Mapping[str, bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in (SETTINGS, MAP):
        content = _settings(files, Path(), name)
        found |= {r: text for r in ROLES if r not in found and (text := _text(content.get(r)))}
    return found


def _named(files: Mapping[str, bytes], where: Path) -> list[Any]:
    """The tokens that the settings name: transformers adds those that the tokenizer lacks, in this order."""
    from tokenizers import AddedToken

    settings = _settings(files, where, SETTINGS)
    named: dict[str, Any] = {}
    decoder = settings.get("added_tokens_decoder")
    listed = decoder if isinstance(decoder, dict) else {}
    for token in (listed[number] for number in sorted(listed, key=lambda n: (len(n), n))):
        if isinstance(token, dict) and _text(token):
            flags = {k: token.get(k) is True for k in ("lstrip", "rstrip", "single_word", "normalized", "special")}
            named.setdefault(token["content"], AddedToken(token["content"], **flags))
    texts = list(_roles(files).values())
    for content in (settings, _settings(files, where, MAP)):
        for key in _LISTS:
            several = content.get(key)
            texts += [t for t in map(_text, _members(several)) if t is not None]
    for text in texts:
        named.setdefault(text, AddedToken(text, special=True, normalized=False))
    return list(named.values())


def _members(several: Any) -> Iterable[Any]:
    return several.values() if isinstance(several, dict) else several if isinstance(several, list) else ()


def without_tokens(tokenizer: TokenizerFiles, rows: int) -> TokenizerFiles:
    """The same without the tokens whose ids are ``rows`` or more: the model has no rows for them."""
    gone = {token for token, number in tokenizer.vocab.items() if number >= rows}
    if not gone:
        return tokenizer
    content = json.loads(tokenizer.fast.to_str())
    content["added_tokens"] = [t for t in content.get("added_tokens", []) if t["content"] not in gone]
    model = content["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {token: number for token, number in vocab.items() if token not in gone}
    elif isinstance(vocab, list):
        model["vocab"] = vocab[:rows]
    if "merges" in model:
        pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
        model["merges"] = [p for p in pairs if not gone & {*p, "".join(p)}]
    made = json.dumps(content, ensure_ascii=False).encode()
    fast = loaded(made, tokenizer.where)
    files = written(_without_mentions(tokenizer.files, gone), fast)
    return TokenizerFiles(tokenizer.where, files, fast, fast.get_vocab(with_added_tokens=True))


def _without_mentions(files: Mapping[str, bytes], gone: set[str]) -> dict[str, bytes]:
    """Settings that name none of the tokens ``gone``, which transformers would add again."""

    def kept(value: Any) -> bool:
        return _text(value) not in gone

    found = dict(files)
    for name in (SETTINGS, MAP):
        if name in files:
            settings = {k: v for k, v in json.loads(files[name]).items() if kept(v)}
            for key in (*_LISTS, "added_tokens_decoder"):
                several = settings.get(key)
                if isinstance(several, dict):
                    settings[key] = {k: v for k, v in several.items() if kept(v)}
                elif isinstance(several, list):
                    settings[key] = [v for v in several if kept(v)]
            found[name] = as_json(settings)
    return found


def written(files: Mapping[str, bytes], fast: Any) -> dict[str, bytes]:
    """The files of a tokenizer that was changed: what the library says, and no file that says otherwise."""
    found = {name: content for name, content in files.items() if name not in SLOW}
    found[JSON] = (fast.to_str(pretty=True) + "\n").encode()
    settings = json.loads(files.get(SETTINGS, b"{}"))
    if "added_tokens_decoder" in settings:
        names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        settings["added_tokens_decoder"] = {
            str(number): {name: getattr(token, name) for name in names}
            for number, token in sorted(fast.get_added_tokens_decoder().items())
        }
        found[SETTINGS] = as_json(settings)
    return dict(sorted(found.items()))


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
