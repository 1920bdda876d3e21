"""A KV cache becomes smaller while the model goes on saying the same.

`with nett.cache.knorm(budget="512tok").on(model): model.generate(…)` keeps a cache within a budget of tokens, bytes or a share;
`nett cache METHOD MODEL --prompt-file FILE` shows what that changes, `nett cache frontier MODEL --text FILE` compares all.
`nett cache ets` is of another kind: a tree search whose cache holds less; `nett.cache.ets(prompt, generate, reward, embed)`.
`nett cache rag DOCS --question TEXT --model MODEL` answers from passages whose keys and values are used again wherever they stand;
`nett.cache.cache_craft(store, system, chunks, question)`.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
