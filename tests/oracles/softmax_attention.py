"""Softmax attention one query at a time in float64, and inputs for its tests."""

import contextlib
from unittest import mock

import numpy as np

from pallas_kernels import target
from pallas_kernels.softmax_attention import blocks, xla

MODES = ["reference", "xla", "xla in small blocks", "xla as in decoding"]
MODES += ["xla in small blocks on a GPU", "xla as in decoding on a GPU"]


@contextlib.contextmanager
def implementation_of(mode, block_scores=96, block_slots=5, block_rows=3):
    """The implementation's name, with blocks small enough for many of them in a small test."""
    if mode.endswith(" on a GPU"):  # whose blocks are larger, by these factors
        sizes = block_scores // blocks.GPU_SCORES, -(-block_slots // blocks.GPU_SLOTS), block_rows
        on_gpu = mock.patch.object(target, "platform", lambda: "gpu")
        with on_gpu, implementation_of(mode.removesuffix(" on a GPU"), *sizes) as name:
            yield name
        return
    if mode == "xla as in decoding":
        with mock.patch.multiple(xla, FEW_ROWS=1 << 30, FEW_ROWS_SLOTS=block_slots):
            yield "xla"
        return
    if mode != "xla in small blocks":
        yield mode
        return
    sizes = {
        "BLOCK_SCORES": block_scores,
        "BLOCK_SLOTS": block_slots,
        "MIN_BLOCK_ROWS": block_rows,
    }
    always = mock.patch.multiple(xla, FEW_ROWS=0, DENSE_SCORES=0)
    with always, mock.patch.multiple(blocks, **sizes):
        yield "xla"


def draw_arrays(seed, batch, kv_batch, time, heads, kv_heads, slots, depth):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((batch, time, heads, depth)).astype(np.float32)
    k, v = rng.standard_normal((2, kv_batch, kv_heads, slots, depth)).astype(np.float32)
    return q, k, v


def causal(batch, time, kv_batch=None, slots=None):
    """Positions of a sequence that attends to itself, or of its last `time` tokens of `slots`."""
    kv_batch, slots = kv_batch or batch, slots or time
    return {
        "q_positions": np.tile(np.arange(slots - time, slots, dtype=np.int32), (batch, 1)),
        "kv_positions": np.tile(np.arange(slots, dtype=np.int32), (kv_batch, 1)),
    }


def oracle(q, k, v, labels, scale, out_bar=None, lse_bar=None):
    """out, lse and, given cotangents, (dq, dk, dv): one query at a time in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros_like(q), np.full(q.shape[:3], -np.inf)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    per_kv_row, per_kv_head = q.shape[0] // k.shape[0], q.shape[2] // k.shape[1]
    for b, t, h in np.ndindex(*q.shape[:3]):
        row, head = b // per_kv_row, h // per_kv_head
        positions = labels["kv_positions"][row]
        seen = (positions >= 0) & (positions <= labels["q_positions"][b, t])
        if labels.get("q_segment_ids") is not None:
            seen &= labels["kv_segment_ids"][row] == labels["q_segment_ids"][b, t]
        if not seen.any():
            continue
        keys, values = k[row, head, seen], v[row, head, seen]
        scores = scale * keys @ q[b, t, h]
        lse[b, t, h] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        p = np.exp(scores - lse[b, t, h])
        out[b, t, h] = p @ values
        if out_bar is not None:
            value_bar = values @ out_bar[b, t, h]
            scores_bar = p * (value_bar - p @ value_bar + lse_bar[b, t, h])
            dq[b, t, h] = scale * scores_bar @ keys
            dk[row, head, seen] += scale * scores_bar[:, None] * q[b, t, h]
            dv[row, head, seen] += p[:, None] * out_bar[b, t, h]
    return out, lse, (dq, dk, dv)
