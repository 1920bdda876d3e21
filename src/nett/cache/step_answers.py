"""The answer in a solution's text, as models are asked to give it."""

from __future__ import annotations

import re

_FORMS = (r"\\boxed\{([^{}]+)\}", r"(?m)^####\s*(.+?)\s*$", r"(?i)\banswer is:?\s*(\S[^\n]*?)\.?\s*(?:\n|$)")


def answer_in(text: str) -> str | None:
    r"""The last ``\boxed{…}``, ``#### …`` or ``answer is …`` of a text; None where there is none."""
    for form in _FORMS:
        found = re.findall(form, text)
        if found:
            return str(found[-1]).strip()
    return None
