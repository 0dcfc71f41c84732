"""What lightning attention takes in PyTorch, for `bench`: chunked, and as transformers has it.

Only this module needs torch and transformers, and nothing of the library needs this module.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import Identity


def contestants() -> dict[str, Callable[..., dict[str, float]]]:
    """Functions of (batch, length, heads, dim, repeats) to the seconds of each pass."""
    found = {"torch": time_chunked}
    try:
        from transformers.models.minimax import modeling_minimax
    except ImportError as error:
        print(f"transformers: left out ({error}); pip install transformers")
    else:
        del modeling_minimax
        found["transformers"] = time_transformers
    return found


def chunked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Lightning attention of q, k, v [B, H, T, D] in batched products, for autograd.

    T is a multiple of the chunk; see `lightning_attention.xla` for the algebra.
    """
    intra, read, write, whole = _decays(slopes, chunk)
    q, k, v = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))  # [B, H, N, C, D]
    states = _Entering.apply(k.mT @ (write * v), whole)
    return ((intra * (q @ k.mT)) @ v + (read * q) @ states).flatten(2, 3)


class ByHand(torch.autograd.Function):
    """`chunked` with a backward pass that reads the scores and states the forward pass kept."""

    @staticmethod
    def forward(ctx, q, k, v, slopes, chunk):
        intra, read, write, whole = _decays(slopes, chunk)
        q, k, v = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))
        states = _entering(k.mT @ (write * v), whole)
        scores = (q @ k.mT).mul_(intra)
        out = (scores @ v).add_((read * q) @ states)
        ctx.save_for_backward(q, k, v, scores, states, intra, read, write, whole)
        return out.flatten(2, 3)

    @staticmethod
    def backward(ctx, dout):
        q, k, v, scores, states, intra, read, write, whole = ctx.saved_tensors
        dout = dout.unflatten(2, q.shape[2:4])
        dscores = (dout @ v.mT).mul_(intra)
        dread = read * dout
        dstates = _entering(q.mT @ dread, whole, reverse=True)
        dq = (dscores @ k).add_(dread @ states.mT)
        dk = (dscores.mT @ q).add_((write * v) @ dstates.mT)
        dv = (scores.mT @ dout).add_((write * k) @ dstates)
        return *(x.flatten(2, 3) for x in (dq, dk, dv)), None, None


class _Entering(torch.autograd.Function):
    """`_entering` for autograd, which would keep every step of its loop."""

    @staticmethod
    def forward(ctx, left, whole):
        ctx.save_for_backward(whole)
        return _entering(left, whole)

    @staticmethod
    def backward(ctx, gradient):
        return _entering(gradient, *ctx.saved_tensors, reverse=True), None


def _entering(left: torch.Tensor, whole: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    """From what each chunk adds to the state [B, H, N, D, D], the state that enters each."""
    states, number = torch.empty_like(left), left.shape[2]
    order = range(number)[::-1] if reverse else range(number)
    states[:, :, order[0]] = 0
    for before, after in itertools.pairwise(order):
        torch.addcmul(left[:, :, before], states[:, :, before], whole, out=states[:, :, after])
    return states


def _decays(slopes: torch.Tensor, chunk: int) -> tuple[torch.Tensor, ...]:
    """Weights [H, 1, C, C], [H, 1, C, 1] twice, and [H, 1, 1] of the state over a chunk."""
    time = torch.arange(chunk)
    rate = -slopes[:, None, None, None]
    distance = time[:, None] - time
    intra = torch.exp(rate * distance).masked_fill(distance < 0, 0)
    read, write = (torch.exp(rate * x[:, None]) for x in (time + 1, chunk - 1 - time))
    return intra, read, write, torch.exp(rate[:, 0] * chunk)


def time_chunked(batch: int, length: int, heads: int, dim: int, repeats: int) -> dict[str, float]:
    """The fastest of every chunk size, with autograd and with the backward pass by hand."""
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    shape = (batch, heads, length, dim)
    times = [
        _times(lambda q, k, v, f=f, c=chunk: f(q, k, v, slopes, c), shape, repeats)
        for f in (chunked, ByHand.apply)
        for chunk in (16, 32, 64, 128, 256)
        if length % chunk == 0
    ]
    return {name: min(x[name] for x in times) for name in times[0]} if times else {}


def time_transformers(
    batch: int, length: int, heads: int, dim: int, repeats: int
) -> dict[str, float]:
    """MiniMax's module with its projections, activation and norm taken out of it."""
    from transformers.models.minimax import modeling_minimax

    config = modeling_minimax.MiniMaxConfig(
        hidden_size=heads * dim, num_attention_heads=heads, head_dim=dim, num_hidden_layers=2
    )
    layer = list(config.layer_types or ()).index("linear_attention")
    module = modeling_minimax.MiniMaxLightningAttention(config, layer)
    for part in ("act_fn", "norm", "qkv_proj", "out_proj"):
        setattr(module, part, Identity())
    setattr(module, "output_gate", _First(heads * dim))  # noqa: B010, it stands in for a Linear

    def attention(qkv):
        return module(qkv, position_embeddings=None, attention_mask=None)[0]

    return _times(attention, (batch, length, 3 * heads * dim), repeats, inputs=1)


class _First(torch.nn.Module):
    """A stand-in for a projection to `size` features: the first of them."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.size].detach()


def _times(
    function: Callable, shape: tuple[int, ...], repeats: int, inputs: int = 3
) -> dict[str, float]:
    arrays = [torch.randn(shape, requires_grad=True) for _ in range(inputs)]

    def forward():
        with torch.no_grad():
            function(*arrays)

    def both():
        out = function(*arrays)
        torch.autograd.grad(out, arrays, torch.ones_like(out))

    passes = {"forward": forward, "forward_backward": both}
    return {name: min(_seconds(run, repeats)) for name, run in passes.items()}


def _seconds(run: Callable[[], None], repeats: int) -> Iterator[float]:
    run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        yield time.perf_counter() - start
