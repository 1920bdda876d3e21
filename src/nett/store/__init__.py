"""A disk full of models: each tensor kept once, fine-tunes as differences, everything back bit for bit.

`nett store add MODEL… --into STORE` keeps models in a store; `nett store ls`, `log`, `check`, `gc` look after it;
`nett restore STORE/MODEL --out DIR` gives one back, and `nett.load("STORE/MODEL")` reads one without restoring it.
`nett store link DIR…` lets equal files share their bytes where they lie, so that every loader goes on working.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
