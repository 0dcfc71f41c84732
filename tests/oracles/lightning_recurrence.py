"""Lightning attention token by token in float64 NumPy, and its hand-derived adjoint."""

import jax.numpy as jnp
import numpy as np

TOLERANCES = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 2e-2)}  # forward, gradients


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


def check_kernel(with_gradients, shape, dtype="float32", slopes=None, segment_ids=None, seed=0):
    """Outputs, final state and all gradients are those of the recurrence; padding gives zeros.

    `with_gradients(q, k, v, slopes, state, segment_ids, dout, dstate)` returns (out, final state)
    and the gradients of q, k, v and the initial state.
    """
    (q, k, v, dout), (state, dstate) = draw(seed, shape, dtype)
    slopes = 2.0 ** np.linspace(-0.5, -8, shape[2]) if slopes is None else np.asarray(slopes)
    slopes = slopes.astype(np.float32)
    segments = np.ones(shape[:2], np.int32) if segment_ids is None else segment_ids
    out, final, steps = recurrence(q, k, v, slopes, state, segments)
    expected = adjoint(q, k, v, steps, np.where(segments[..., None, None] == 0, 0, dout), dstate)
    results, gradients = with_gradients(q, k, v, slopes, state, segment_ids, dout, dstate)
    forward, backward = TOLERANCES[dtype]
    assert results[0].dtype == gradients[0].dtype == q.dtype
    assert results[1].dtype == gradients[3].dtype == jnp.float32
    for name, result, value in zip(("out", "state"), results, (out, final), strict=True):
        assert relative_error(result, value) <= forward, name
    if dtype == "bfloat16":  # as decoding rounds them, but for what lies next to a tie
        rounded = out.astype(q.dtype)
        assert np.mean(np.asarray(results[0]) == rounded) >= 0.985
    for name, result, value in zip(("dq", "dk", "dv", "dstate"), gradients, expected, strict=True):
        assert relative_error(result, value) <= backward, name
    for tokens in (results[0], *gradients[:3]):
        np.testing.assert_array_equal(np.asarray(tokens, np.float32)[segments == 0], 0)
