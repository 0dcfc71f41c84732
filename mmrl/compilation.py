"""How programs are compiled: kept on disk, and with less effort where they run once."""

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


def run_once_options() -> dict[str, int] | None:
    """The compiler's options for a program that runs once, as that of the random parameters does.

    On a CPU LLVM's optimizations at their default level take seconds, and the program milliseconds.
    Level 1 gives the same bits; level 0 does not, for it rounds between product and sum.
    """
    return {"xla_backend_optimization_level": 1} if target.platform() == "cpu" else None
