"""A Llama in plain NumPy, float64, from the formulas: what partial recomputation should give, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np


class PlainLlama:
    def __init__(self, model: Any) -> None:
        self.w = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
        c = model.config
        self.layers, self.eps = c.num_hidden_layers, c.rms_norm_eps
        self.heads, self.groups = c.num_attention_heads, c.num_attention_heads // c.num_key_value_heads
        self.width = c.hidden_size // c.num_attention_heads
        self.theta = float(c.rope_parameters["rope_theta"])

    def norm(self, x: Any, name: str) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.w[name]

    def turned(self, x: Any, places: Any) -> Any:
        """``[h, n, d]`` rotated to places ``[n]``."""
        half = self.width // 2
        angle = places[:, None] * self.theta ** (-np.arange(half) / half)
        c, s = np.cos(angle), np.sin(angle)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    def run(self, ids: Any, places: Any, stored: list[tuple[Any, Any]], length: int) -> tuple[Any, list[Any]]:
        """Tokens ``ids`` at ``places`` through all layers; ``stored``: of each layer unrotated keys and values ``[h, length,
        d]`` of the other places. Returns the last token's logits, and of each layer (keys unrotated, values, attention
        ``[hq, m, length]``)."""
        ids, places = np.asarray(ids), np.asarray(places)
        x = self.w["model.embed_tokens.weight"][ids]
        noted = []
        for k in range(self.layers):
            at = f"model.layers.{k}."
            h = self.norm(x, at + "input_layernorm.weight")

            def heads(name: str, h: Any = h, at: str = at) -> Any:
                made = h @ self.w[f"{at}self_attn.{name}_proj.weight"].T
                return made.reshape(len(ids), -1, self.width).transpose(1, 0, 2)

            keys, values = (t.copy() for t in stored[k])
            keys[:, places], values[:, places] = heads("k"), heads("v")
            everywhere = np.repeat(self.turned(keys, np.arange(length)), self.groups, 0)
            logits = self.turned(heads("q"), places) @ everywhere.transpose(0, 2, 1) / np.sqrt(self.width)
            logits = np.where(np.arange(length) <= places[:, None], logits, -np.inf)
            attention = np.exp(logits - logits.max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            out = (attention @ np.repeat(values, self.groups, 0)).transpose(1, 0, 2).reshape(len(ids), -1)
            x = x + out @ self.w[at + "self_attn.o_proj.weight"].T
            h = self.norm(x, at + "post_attention_layernorm.weight")
            gate = h @ self.w[at + "mlp.gate_proj.weight"].T
            up = h @ self.w[at + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[at + "mlp.down_proj.weight"].T
            noted.append((keys, values, attention))
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return self.norm(x[-1], "model.norm.weight") @ head.T, noted

    def nothing(self, length: int) -> list[tuple[Any, Any]]:
        empty = np.zeros((self.heads // self.groups, length, self.width))
        return [(empty, empty)] * self.layers
