"""A mixture of experts with fewer or smaller experts, or less of it in memory.

`nett experts simulate CONFIG.yml` says what serving one would cost on processors and on logic near memory.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
