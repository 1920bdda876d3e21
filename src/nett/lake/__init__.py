"""Tables that other tables contain: found, proved, and deleted with nothing lost.

`nett lake scan PATH` says which tables are wholly contained in others, column by column and row by row, and what that
costs; `nett lake plan` chooses which to delete and how each is rebuilt; `nett lake apply` does it by way of a
quarantine, `nett lake restore` brings tables back and `nett lake purge` empties the quarantine after a while.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
