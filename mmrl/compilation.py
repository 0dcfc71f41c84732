"""How programs are compiled: kept on disk, with each rounding, and quickly where they run once."""

import functools
import os
from pathlib import Path

import jax

from pallas_kernels import target


def enable_compilation_cache() -> None:
    """Keeps compiled programs in `JAX_COMPILATION_CACHE_DIR`, by default ~/.cache/mmrl/jax."""
    default = Path.home() / ".cache" / "mmrl" / "jax"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# `jax.jit` for programs that run the model: they round to bfloat16 wherever the model says so. XLA
# else leaves roundings out between operations that it fuses, and it fuses the sampler's step and
# the trainer's pass differently: by that alone their log-probabilities differ by 4e-3 a token.
model_jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})


def run_once_options() -> dict[str, int] | None:
    """The compiler's options for a program that runs once, as that of the random parameters does.

    On a CPU LLVM's optimizations at their default level take seconds, and the program milliseconds.
    Level 1 gives the same bits; level 0 does not, for it rounds between product and sum.
    """
    return {"xla_backend_optimization_level": 1} if target.platform() == "cpu" else None
