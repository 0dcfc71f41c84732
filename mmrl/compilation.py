"""The persistent compilation cache: a program that was compiled once is read from disk."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs in `JAX_COMPILATION_CACHE_DIR`, by default ~/.cache/mmrl/jax."""
    default = Path.home() / ".cache" / "mmrl" / "jax"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
