"""MiniMax-M1's forward pass in float64 numpy, token by token, written from the paper's formulas.

An oracle that shares no code with the decoder: loops over rows, heads and tokens, no cache, no
chunks, no sorting. Parameters come as the decoder's tree, converted to float64.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x, position, width, theta):
    """x [H, D] at one position: pairs (i, i + width/2) of the first `width` dimensions."""
    out = x.copy()
    for i in range(width // 2):
        angle = position * theta ** (-2 * i / width)
        a, b = x[:, i], x[:, i + width // 2]
        out[:, i] = a * np.cos(angle) - b * np.sin(angle)
        out[:, i + width // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def lightning(x, p, config, layer):
    """x [T, M]: KV_t = λ KV_{t-1} + k_tᵀ v_t, o_t = q_t KV_t, one head at a time."""
    length, heads, d = len(x), config.num_heads, config.head_dim
    factor = 1 - layer / (config.num_layers - 1) + 1e-5
    out = np.zeros((length, heads, d))
    for h in range(heads):
        decay = np.exp(-(2 ** (-8 * (h + 1) / heads)) * factor)
        state = np.zeros((d, d))
        for t in range(length):
            q, k, v = np.split(silu(x[t] @ p["qkv"][:, h]), 3)
            state = decay * state + np.outer(k, v)
            out[t, h] = q @ state
    y = norm(out.reshape(length, -1), p["norm"]["weight"], 1e-6)
    y = y * sigmoid(x @ p["gate"].reshape(len(p["gate"]), -1))
    return y @ p["out"].reshape(-1, x.shape[1])


def attention(x, p, config):
    """x [T, M]: grouped-query softmax attention, one query at a time."""
    length, heads, d = len(x), config.num_heads, config.head_dim
    repeat = heads // config.num_kv_heads
    q, k, v = (np.einsum("tm,mhd->thd", x, p[name]) for name in ("q", "k", "v"))
    q = np.stack([rotate(q[t], t, config.rotary_width, config.rope_theta) for t in range(length)])
    k = np.stack([rotate(k[t], t, config.rotary_width, config.rope_theta) for t in range(length)])
    out = np.zeros((length, heads, d))
    for t in range(length):
        for h in range(heads):
            scores = k[: t + 1, h // repeat] @ q[t, h] / np.sqrt(d)
            out[t, h] = softmax(scores) @ v[: t + 1, h // repeat]
    return out.reshape(length, -1) @ p["out"].reshape(-1, x.shape[1])


def experts(x, p, config):
    """x [T, M]: every token through its top-k experts, one at a time."""
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        probs = softmax(token @ p["router"])
        chosen = np.argsort(-probs)[: config.experts_per_token]
        for e in chosen:
            hidden = silu(token @ p["gate"][e]) * (token @ p["up"][e])
            out[t] += probs[e] / probs[chosen].sum() * (hidden @ p["down"][e])
        if "shared" in p:
            share = sigmoid(token @ p["shared_coefficient"])
            shared = p["shared"]
            hidden = silu(token @ shared["gate"]) * (token @ shared["up"])
            out[t] = out[t] * (1 - share) + hidden @ shared["down"] * share
    return out


def decoder(tokens, params, config):
    """Logits [T, V] of one sequence of token ids."""
    h = params["embedding"][tokens]
    for layer in range(config.num_layers):
        group, index = divmod(layer, len(config.layer_pattern))
        p = _slice(params["runs"], config, group, index)
        x = norm(h, p["input_norm"]["weight"], config.norm_eps)
        if config.layer_pattern[index] == "lightning":
            y = lightning(x, p["attention"], config, layer)
            alpha, beta = config.lightning_alpha, config.lightning_beta
        else:
            y = attention(x, p["attention"], config)
            alpha, beta = config.softmax_alpha, config.softmax_beta
        h = alpha * (x if config.postnorm else h) + beta * y
        x = norm(h, p["post_attention_norm"]["weight"], config.norm_eps)
        y = experts(x, p["mlp"], config)
        h = config.mlp_alpha * (x if config.postnorm else h) + config.mlp_beta * y
    return norm(h, params["final_norm"], config.norm_eps) @ params["head"].T


def _slice(runs, config, group, index):
    """The parameters of the layer at `index` of the pattern's repetition `group`."""
    for run, (_, length) in enumerate(config.runs):
        if index < length:
            return _take(runs[run], group * length + index)
        index -= length


def _take(tree, layer):
    if isinstance(tree, dict):
        return {name: _take(value, layer) for name, value in tree.items()}
    return tree[layer]
