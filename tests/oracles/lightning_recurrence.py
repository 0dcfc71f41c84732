"""Lightning attention token by token in float64 NumPy, and its hand-derived adjoint."""

import jax.numpy as jnp
import numpy as np


def recurrence(q, k, v, slopes, state, segment_ids):
    """out [B, T, H, D], the final state, and per valid token (row, t, factor, state after it)."""
    q, k, v, state = (np.array(x, np.float64) for x in (q, k, v, state))
    lam = np.exp(-np.asarray(slopes, np.float64))[:, None, None]
    out, steps = np.zeros_like(q), []
    for row, ids in enumerate(np.asarray(segment_ids)):
        current = 0
        for t in np.flatnonzero(ids):
            factor = lam * (current in (0, ids[t]))
            current = ids[t]
            state[row] = factor * state[row] + k[row, t][:, :, None] * v[row, t][:, None, :]
            out[row, t] = (q[row, t][:, None, :] @ state[row])[:, 0]
            steps.append((row, t, factor, state[row].copy()))
    return out, state, steps


def adjoint(q, k, v, steps, dout, dstate):
    """dq, dk, dv and the gradient of the initial state, from the recurrence's steps."""
    q, k, v, dout, dstate = (np.array(x, np.float64) for x in (q, k, v, dout, dstate))
    dq, dk, dv = (np.zeros_like(q) for _ in range(3))
    for row, t, factor, state in reversed(steps):
        dq[row, t] = (state @ dout[row, t][:, :, None])[..., 0]
        total = dstate[row] + q[row, t][:, :, None] * dout[row, t][:, None, :]
        dk[row, t] = (total @ v[row, t][:, :, None])[..., 0]
        dv[row, t] = (k[row, t][:, None, :] @ total)[:, 0]
        dstate[row] = factor * total
    return dq, dk, dv, dstate


def draw(seed, shape, dtype):
    """q, k, v and the cotangent of the output in dtype; initial state and its cotangent."""
    rng = np.random.default_rng(seed)
    tokens = [jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4)]
    batch, _, heads, dim = shape
    states = rng.standard_normal((2, batch, heads, dim, dim)).astype(np.float32)
    return tokens, states


def relative_error(actual, expected):
    """|actual - expected| / |expected| over the whole array; `actual` must be finite."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert np.isfinite(actual).all()
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-12)
