"""transformers' own cache in 8-bit floating point, as a baseline."""

from __future__ import annotations

from typing import Any

from nett.core.errors import Refused
from nett.core.registry import method


@method(papers=[], title="transformers' fp8 cache", kind="serve", grain="block", extra="models")
def fp8(config: Any) -> Any:
    """Hold keys and values as transformers' ``QuantizedCache("fp8")`` does: e4m3 numbers, one scale a layer.

    Formula: x ~ s * e4m3(x / s), s = max |prompt| / 448
    When to use: as a baseline; a quarter of float32's bytes where nothing else may change.
    When not: later tokens that are larger than any of the prompt's: the scale is that of the prompt, of all rows of a
        batch together, so that a row's answer depends on the others.
    Cost: codes are turned into numbers again at every step.
    Source: transformers, ``cache_utils.Fp8QuantizedLayer``.
    """
    import transformers

    try:
        return transformers.QuantizedCache("fp8", config)
    except (ValueError, TypeError) as error:
        raise Refused(
            f"transformers {transformers.__version__} makes no fp8 cache: {error}",
            where="cache/fp8",
            hint="Versions from 5.23 on have one; nett.cache.kivi needs none.",
        ) from error
