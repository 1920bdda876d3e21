"""Where the units of transformers' models lie in their tensors, by the tensors' names.

One line a tensor: what lies along each axis. ``residual`` dimensions, ``mlp`` neurons, ``q`` ``k`` ``v`` ``o`` heads,
``pooled`` and ``transform`` units of heads on top; ``<`` marks rows that make units, ``>`` columns that read them, ``=``
what belongs to them on their way; ``a|b`` lie one after the other, ``-`` is never permuted. Names are written without
what stands before them, ``#`` is the layer's number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Layout:
    """rotary: positions enter by rotating pairs of dimensions of each query and key head, so those stay in order.

    interleaved: a fused projection holds query, key and value head by head.
    """

    name: str
    lines: Mapping[str, str]
    rotary: bool
    interleaved: bool = False

    def match(self, tensor: str) -> tuple[str, str] | None:
        """(layer, axes) of a tensor: ``model.layers.3`` or an empty layer; None where no line fits."""
        for pattern, axes in self.lines.items():
            found = re.search(r"(?:^|\.)" + pattern.replace(".", r"\.").replace("#", r"(\d+)") + "$", tensor)
            if found:
                number = found.groups()[0] if "#" in pattern else None
                return (tensor[: found.end(1)] if number else ""), axes
        return None


IGNORED = re.compile(r"(rotary_emb\.inv_freq|position_ids|token_type_ids|attn\.(masked_)?bias)$")  # no weights

_DECODER = {
    "embed_tokens.weight": "- <residual",
    "lm_head.weight": "- >residual",
    "lm_head.bias": "-",
    "score.weight": "- >residual",
    r"(?:norm|final_layernorm).(?:weight|bias)": "=residual",
    "layers.#.(?:input|post_attention|pre_feedforward|post_feedforward)_layernorm.(?:weight|bias)": "=residual",
    "layers.#.(?:post_self_attn|post_mlp)_layernorm.weight": "=residual",
    "layers.#.self_attn.q_proj.weight": "<q >residual",
    "layers.#.self_attn.k_proj.weight": "<k >residual",
    "layers.#.self_attn.v_proj.weight": "<v >residual",
    "layers.#.self_attn.qkv_proj.weight": "<q|k|v >residual",
    "layers.#.self_attn.q_proj.bias": "<q",
    "layers.#.self_attn.k_proj.bias": "<k",
    "layers.#.self_attn.v_proj.bias": "<v",
    "layers.#.self_attn.(?:o_proj|dense).weight": "<residual >o",
    "layers.#.self_attn.(?:o_proj|dense).bias": "<residual",
    "layers.#.self_attn.q_norm.weight": "=q",
    "layers.#.self_attn.k_norm.weight": "=k",
    "layers.#.mlp.(?:gate_proj|up_proj|fc1|c_fc).weight": "<mlp >residual",
    "layers.#.mlp.(?:gate_proj|up_proj|fc1|c_fc).bias": "<mlp",
    "layers.#.mlp.gate_up_proj.weight": "<mlp|mlp >residual",
    "layers.#.mlp.(?:down_proj|fc2|c_proj).weight": "<residual >mlp",
    "layers.#.mlp.(?:down_proj|fc2|c_proj).bias": "<residual",
}
_NEOX = {
    "embed_in.weight": "- <residual",
    "(?:embed_out|lm_head).weight": "- >residual",
    "final_layer_norm.(?:weight|bias)": "=residual",
    "layers.#.(?:input|post_attention)_layernorm.(?:weight|bias)": "=residual",
    "layers.#.attention.query_key_value.weight": "<qkv >residual",
    "layers.#.attention.query_key_value.bias": "<qkv",
    "layers.#.attention.dense.weight": "<residual >o",
    "layers.#.attention.dense.bias": "<residual",
    "layers.#.mlp.dense_h_to_4h.weight": "<mlp >residual",
    "layers.#.mlp.dense_h_to_4h.bias": "<mlp",
    "layers.#.mlp.dense_4h_to_h.weight": "<residual >mlp",
    "layers.#.mlp.dense_4h_to_h.bias": "<residual",
}
_GPT2 = {
    "wte.weight": "- <residual",
    "wpe.weight": "- <residual",
    "lm_head.weight": "- >residual",
    "score.weight": "- >residual",
    "ln_f.(?:weight|bias)": "=residual",
    "h.#.ln_[12].(?:weight|bias)": "=residual",
    "h.#.attn.c_attn.weight": ">residual <q|k|v",  # the other way round: inputs first
    "h.#.attn.c_attn.bias": "<q|k|v",
    "h.#.attn.c_proj.weight": ">o <residual",
    "h.#.attn.c_proj.bias": "<residual",
    "h.#.mlp.c_fc.weight": ">residual <mlp",
    "h.#.mlp.c_fc.bias": "<mlp",
    "h.#.mlp.c_proj.weight": ">mlp <residual",
    "h.#.mlp.c_proj.bias": "<residual",
}
_OPT = {
    "decoder.embed_(?:tokens|positions).weight": "- <residual",
    "lm_head.weight": "- >residual",
    "score.weight": "- >residual",
    "decoder.final_layer_norm.(?:weight|bias)": "=residual",
    "layers.#.(?:self_attn|final)_layer_norm.(?:weight|bias)": "=residual",
    **{f"layers.#.self_attn.{x}_proj.weight": f"<{x} >residual" for x in "qkv"},
    **{f"layers.#.self_attn.{x}_proj.bias": f"<{x}" for x in "qkv"},
    "layers.#.self_attn.out_proj.weight": "<residual >o",
    "layers.#.self_attn.out_proj.bias": "<residual",
    "layers.#.fc1.weight": "<mlp >residual",
    "layers.#.fc1.bias": "<mlp",
    "layers.#.fc2.weight": "<residual >mlp",
    "layers.#.fc2.bias": "<residual",
}
_SELF = {"query": "q", "key": "k", "value": "v"}
_ENCODER = {
    "embeddings.(?:word|position|token_type)_embeddings.weight": "- <residual",
    "embeddings.position_embeddings": "- - <residual",
    "embeddings.(?:cls_token|mask_token|distillation_token)": "- - <residual",
    "embeddings.patch_embeddings.projection.weight": "<residual - - -",
    "embeddings.patch_embeddings.projection.bias": "<residual",
    r"(?:embeddings.LayerNorm|vit.layernorm|(?<!\w)layernorm|deit.layernorm).(?:weight|bias)": "=residual",
    "layers?.#.layernorm_(?:before|after).(?:weight|bias)": "=residual",
    **{f"layers?.#.attention.(?:self|attention).{x}.weight": f"<{y} >residual" for x, y in _SELF.items()},
    **{f"layers?.#.attention.(?:self|attention).{x}.bias": f"<{y}" for x, y in _SELF.items()},
    **{f"layers?.#.attention.{y}_proj.weight": f"<{y} >residual" for y in "qkv"},
    **{f"layers?.#.attention.{y}_proj.bias": f"<{y}" for y in "qkv"},
    "layers?.#.attention.(?:output.dense|o_proj).weight": "<residual >o",
    "layers?.#.attention.(?:output.dense|o_proj).bias": "<residual",
    "layers?.#.(?:intermediate.dense|mlp.fc1).weight": "<mlp >residual",
    "layers?.#.(?:intermediate.dense|mlp.fc1).bias": "<mlp",
    "layers?.#.(?:output.dense|mlp.fc2).weight": "<residual >mlp",
    "layers?.#.(?:output.dense|mlp.fc2).bias": "<residual",
    "layers?.#.(?:attention.output|output).LayerNorm.(?:weight|bias)": "=residual",
    "pooler.dense.weight": "<pooled >residual",
    "pooler.dense.bias": "<pooled",
    "classifier.dense.weight": "<pooled >residual",
    "classifier.dense.bias": "<pooled",
    "classifier.out_proj.weight": "- >pooled",
    "classifier.out_proj.bias": "-",
    "classifier.weight": "- >classified",
    "classifier.bias": "-",
    "qa_outputs.weight": "- >residual",
    "qa_outputs.bias": "-",
    "cls.seq_relationship.weight": "- >pooled",
    "cls.seq_relationship.bias": "-",
    "(?:cls.predictions.transform.dense|lm_head.dense).weight": "<transform >residual",
    "(?:cls.predictions.transform.dense|lm_head.dense).bias": "<transform",
    "(?:cls.predictions.transform.LayerNorm|lm_head.layer_norm).(?:weight|bias)": "=transform",
    "(?:cls.predictions|lm_head).decoder.weight": "- >transform",
    "(?:cls.predictions|lm_head)(?:.decoder)?.bias": "-",
}
_DISTIL = {
    "embeddings.(?:word|position)_embeddings.weight": "- <residual",
    "embeddings.LayerNorm.(?:weight|bias)": "=residual",
    **{f"layer.#.attention.{x}_lin.weight": f"<{x} >residual" for x in "qkv"},
    **{f"layer.#.attention.{x}_lin.bias": f"<{x}" for x in "qkv"},
    "layer.#.attention.out_lin.weight": "<residual >o",
    "layer.#.attention.out_lin.bias": "<residual",
    "layer.#.(?:sa|output)_layer_norm.(?:weight|bias)": "=residual",
    "layer.#.ffn.lin1.weight": "<mlp >residual",
    "layer.#.ffn.lin1.bias": "<mlp",
    "layer.#.ffn.lin2.weight": "<residual >mlp",
    "layer.#.ffn.lin2.bias": "<residual",
    "vocab_transform.weight": "<transform >residual",
    "vocab_transform.bias": "<transform",
    "vocab_layer_norm.(?:weight|bias)": "=transform",
    "vocab_projector.weight": "- >transform",
    "vocab_projector.bias": "-",
    "pre_classifier.weight": "<pooled >residual",
    "pre_classifier.bias": "<pooled",
    "classifier.weight": "- >classified",
    "classifier.bias": "-",
    "qa_outputs.weight": "- >residual",
    "qa_outputs.bias": "-",
}

LAYOUTS = (
    Layout("decoder like Llama", _DECODER, rotary=True),
    Layout("decoder like GPT-NeoX", _NEOX, rotary=True, interleaved=True),
    Layout("decoder like GPT-2", _GPT2, rotary=False),
    Layout("decoder like OPT", _OPT, rotary=False),
    Layout("encoder like BERT", _ENCODER, rotary=False),
    Layout("encoder like DistilBERT", _DISTIL, rotary=False),
)
