"""Retrieved chunks whose keys and values were computed once are used wherever they stand in later prompts (Cache-Craft)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from nett.core.registry import Between, method


@method(papers=["P11"], title="Chunk caches for retrieval (Cache-Craft)", kind="make", grain="model", extra="models")
def cache_craft(
    store: Any,
    system: Any,
    chunks: Sequence[Any],
    question: Any,
    *,
    by: Literal["cache_craft", "cacheblend", "first", "random", "reuse", "prefix", "full"] = "cache_craft",
    alpha: Annotated[float, Between(0, 1000)] = 1.0,
    share: Annotated[float, Between(0, 1)] = 0.0,
    renew: Annotated[float, Between(0, 1, open_low=True)] = 1.0,
    sink: bool = False,
    keep: bool = True,
    room: Annotated[int, Between(1)] = 1,
    seed: Annotated[int, Between(0)] = 0,
) -> Any:
    """Make the cache of a prompt out of stored chunks, and compute again only tokens that depended on their old context.

    Formula: CFO = min(1, alpha CCI (1 - beta (1 - gamma))): the share of a stored chunk's tokens that is computed again, those
        first that attended most to earlier chunks; CCI = 1 / (1 + exp(-a / b)), a: sum over the earlier chunks of the mean
        attention of a pair of tokens across, b: the mean within the chunk; beta: the share of the attention to earlier chunks
        that went to such as stand before it now too; gamma: the share of their pairs that stand in another order now
    Args:
        by: how stored chunks are used: cache_craft, or one of its rivals: cacheblend (as many tokens as cache_craft, those whose
            keys and values in the second layer are furthest from what is stored), first (as many, from a chunk's beginning),
            random (as many, by chance), reuse (nothing computed again), prefix (only what stood behind exactly the same text:
            exact), full (nothing used: exact).
        alpha: factor of the CFO; larger is nearer to full recomputation.
        share: of every chunk that is used in another context, whatever its CFO; 0 for the CFO.
        renew: the CFO from which on a chunk is computed wholly, and kept as one more variant.
        sink: the system's text counts among the chunks that a chunk looked at.
        keep: chunks that are computed wholly come to the store, and uses are counted; else the store stays as it is.
        room: tokens that the model must have places for behind the prompt.
        seed: of by = random.
    Returns: a Served: ``logits`` of what comes next, ``cache`` for the model with ``ids`` (the prompt and the most likely next
        token: ``model.generate(served.ids, past_key_values=served.cache)``), ``ledger`` with ``token_layers`` of
        ``full_token_layers``, ``parts``: what was used, moved and computed of each chunk, ``seconds`` up to the first token,
        ``storing_seconds`` after it.
    Example:
        store = nett.cache.chunk_store(model, tokenizer, folder="chunks", memory="1GB")
        served = nett.cache.cache_craft(store, "Answer from the passages.", passages, "\\nQuestion: …\\nAnswer:", alpha=1.0)
        answer = model.generate(served.ids, past_key_values=served.cache)
        # or: nett cache rag DOCS --question "…" --model MODEL --encoder ENCODER
    When to use: retrieval, where the same chunks come back in other companies and orders, and prompts are long.
    When not: prompts that begin alike (by = prefix is exact), or chunks that make no sense without each other.
    Cost: the tokens that are computed, in all layers; for chunks that are new, attention weights once more after the first token.
    Guarantee: with all tokens computed, or all behind a prefix that is stored, the answer is the model's own, bit for bit.
    Source: P11, arXiv:2502.15734, equations 3 to 14; cacheblend: Yao et al. 2024, arXiv:2405.16444; first: Hu et al. 2024,
        arXiv:2410.15332. Keys are kept as they were rotated and are rotated again where they move.
    """
    from nett.cache.chunk_serving import serve
    from nett.cache.chunk_store import chunk_store
    from nett.core.errors import UsageError

    if not isinstance(store, chunk_store):
        raise UsageError(
            f"store is {type(store).__name__}, not a chunk store", where="cache/cache_craft",
            hint="store = nett.cache.chunk_store(model, tokenizer)",
        )  # fmt: skip
    return serve(
        store,
        system,
        chunks,
        question,
        by=by,
        alpha=alpha,
        share=share,
        renew=renew,
        sink=sink,
        keep=keep,
        room=room,
        seed=seed,
    )
