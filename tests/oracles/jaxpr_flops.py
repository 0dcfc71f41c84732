"""FLOPs of the matrix products in a jaxpr, loops multiplied out: 2 a multiply-add."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def product_flops(function, *arguments) -> int:
    """FLOPs of all dot_general and ragged_dot that `function` of these arguments traces to.

    Of branches the one without loops of unknown length counts; ValueError for such a loop itself.
    """
    flops = _count(jax.make_jaxpr(function)(*arguments).jaxpr)
    if flops is None:
        raise ValueError("a loop of unknown length multiplies")
    return flops


def _count(jaxpr: Jaxpr) -> int | None:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            width = math.prod(left[axis] for axis in contracted)
            total += 2 * width * math.prod(equation.outvars[0].aval.shape)
            continue
        if name.startswith("ragged_dot"):
            left = equation.invars[0].aval.shape
            out = equation.outvars[0].aval.shape
            # [N, K] x [E, K, M] -> [N, M], or the gradient [N, K] x [N, M] -> [E, K, M]
            total += 2 * math.prod(left) * out[-1]
            continue
        inner = [_count(sub) for sub in _inner(equation.params)]
        if name == "cond":
            known = {flops for flops in inner if flops is not None}
            assert len(known) == 1, f"branches of a cond differ: {known}"
            inner = list(known)
        if name == "while" and any(inner) or None in inner:
            return None
        total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
