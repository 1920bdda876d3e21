"""The chat templates that recipes can name, as Jinja texts that render what mergekit's of those names render.

Where these differ from the format that a family of models was trained with (line ends after each message of ``llama3``,
spaces in ``exaone``), it is mergekit's rendering that is kept: a recipe gives the same prompts here and there.
"""

from __future__ import annotations

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_LLAMA3 = """\
{%- for message in messages -%}
{{- bos_token if loop.first else '' -}}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

_MISTRAL = """\
{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- set turns = messages if system is none else messages[1:] -%}
{{- bos_token -}}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 is even) -%}
{{- raise_exception('Roles must alternate: user, assistant, user, assistant, ... after one system message at most.') -}}
{%- elif turn.role == 'user' -%}
{{- ' [INST] ' + (system + '\\n\\n' if loop.first and system is not none else '') + turn.content + ' [/INST]' -}}
{%- elif turn.role == 'assistant' -%}
{{- ' ' + turn.content + eos_token -}}
{%- else -%}
{{- raise_exception('The roles are system (the first message only), user and assistant.') -}}
{%- endif -%}
{%- endfor -%}
"""

_EXAONE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}{{- ' ' * 8 + '[|system|][|endofturn|]\\n\\n' -}}{%- endif -%}
{{- ' ' * 4 + '[|' + message.role + '|]' + message.content + '\\n' -}}
{{- ' ' * 8 + ('\\n\\n' if message.role == 'user' else '[|endofturn|]\\n\\n') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ' * 4 + '[|assistant|]\\n' -}}{%- endif -%}
"""

_ALPACA = """\
{%- set systems = messages | selectattr('role', 'equalto', 'system') | list -%}
{{- (systems[-1].content | trim if systems else '') + '\\n\\n' -}}
{%- set titles = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'} -%}
{%- for message in messages -%}
{%- if message.role in titles -%}
{{- '### ' + titles[message.role] + ':\\n' + message.content | trim + ('' if loop.last else '\\n\\n') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}{{- '### Response:\\n' -}}{%- endif -%}
"""

TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
