"""A mixture of experts with fewer or smaller experts, or less of it in memory.

Give a mixture (Mixtral, Qwen2/3-MoE, OLMoE, Phi-MoE, DeepSeek-V3, GraniteMoe, and what is stored as these are), how many
experts shall stay, and some text like that which it will meet; get a folder that transformers loads unmodified, with what
it cost measured on text that was held out. Start with `nett experts reap`. `nett experts simulate CONFIG.yml` says what serving
one would cost on processors and on logic near memory.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
