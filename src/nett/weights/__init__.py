"""One checkpoint becomes a smaller one.

Give a model and, where a method asks for it, some text like that which it will meet; get a folder that transformers
loads unmodified, with what it cost measured on text that was held out. Start with `nett weights gptq`, or with
`nett weights rtn` where there is no text.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)
