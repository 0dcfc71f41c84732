"""Compiles for an H100 on a machine without a GPU, and reads what ptxas made of the kernels.

`python -m pallas_kernels.gpu_compiler` installs the compiler: JAX's CUDA plugin, without CUDA's
libraries, and ptxas, in a directory of their own, so that other processes do not find a CUDA
platform. A process that compiles needs `environment` from its start.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PACKAGES = (
    f"jax-cuda13-plugin=={jax.__version__}",
    f"jax-cuda13-pjrt=={jax.__version__}",
    "nvidia-cuda-nvcc==13.5.37",
)
REMEDY = "needs the GPU compiler: python -m pallas_kernels.gpu_compiler"
# The public figures of one H100 SXM 80 GB, in XLA's GpuTargetConfigProto text form.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_GRID = re.compile(
    r"grid_x = (?P<x>\d+) : i32, grid_y = (?P<y>\d+) : i32, grid_z = (?P<z>\d+) : i32"
    r".*?name = \"(?P<name>\w+)\""
)
_DUMP, _PASSES = "--xla_dump_to=", "--xla_dump_emitter_re=.*triton.*"


class Kernel(NamedTuple):
    """One Pallas kernel as an H100 would run it."""

    name: str
    blocks: int  # in its grid
    threads: int  # in a block
    registers: int  # of a thread
    spilled_bytes: int  # of a thread, stored and loaded
    shared_bytes: int  # of a block
    tensor_core: int  # wgmma and mma instructions in its PTX

    @property
    def resident(self) -> int:
        """Blocks on one multiprocessor, by its registers, shared memory (228 KiB) and threads."""
        registers = -(-self.registers // 8) * 8 * self.threads
        return min(65536 // registers, 233472 // (self.shared_bytes + 1024), 2048 // self.threads)


def directory() -> Path:
    """Where the compiler is installed."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pallas_kernels" / "gpu_compiler"


def install() -> None:
    """Installs the compiler with pip, 350 MB, if it is not there."""
    if available():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", str(directory()), *PACKAGES], check=True)


def available() -> bool:
    """Whether `install` was run to its end for this version of JAX."""
    plugin = directory() / f"jax_cuda13_plugin-{jax.__version__}.dist-info"
    return plugin.exists() and (_cuda() / "bin" / "ptxas").exists()


def environment(dump: str | Path | None = None) -> dict[str, str]:
    """The environment of a process that compiles for an H100, its kernels left in `dump`."""
    path = os.pathsep.join([str(directory()), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={_cuda()}"
    if dump is not None:
        flags += f" {_DUMP}{dump} {_PASSES}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache leaves no listing
        "PYTHONPATH": path,
        "XLA_FLAGS": flags,
    }


def h100s(topology: str) -> list[jax.Device]:
    """H100s to compile for; the topology is "SLICESxHOSTSxDEVICES", devices being those of a host.

    The process must be in `environment`.
    """
    return topologies.get_topology_desc(
        topology_name="h100", platform="cuda", topology=topology, target_config=_H100
    ).devices


def compile_for_h100(
    function: Callable, *shapes: jax.ShapeDtypeStruct | None
) -> jax.stages.Compiled:
    """`function` of arrays of these shapes, compiled for one H100."""
    devices = h100s("1x1x1")
    sharding = NamedSharding(Mesh(np.array(devices), "gpu"), PartitionSpec())
    arguments = [x and jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
    return jax.jit(function).lower(*arguments).compile()


def kernels_of(function: Callable, *shapes: jax.ShapeDtypeStruct | None) -> list[Kernel]:
    """The Triton kernels of `function` at these shapes, as ptxas compiles them."""
    directory = Path(os.environ["XLA_FLAGS"].split(_DUMP)[1].split()[0])
    before = set(directory.iterdir()) if directory.exists() else set()
    text = compile_for_h100(function, *shapes).as_text() or ""
    grids = {x["name"]: math.prod(int(x[axis]) for axis in "xyz") for x in _GRID.finditer(text)}
    new = set(directory.iterdir()) - before
    kernels = []
    for path in new:
        ptx = path.read_text() if path.suffix == ".ptx" else ""
        name = next(iter(re.findall(r"\.entry (\w+)\(", ptx)), None)
        if name and name.split("__")[0] in grids:
            (passes,) = (x for x in new if x.name.endswith(f".{name}.triton-to-llvm.txt"))
            kernels.append(_kernel(name, grids[name.split("__")[0]], path, passes.read_text()))
    for path in new:  # a compilation leaves megabytes
        path.unlink()
    return sorted(kernels)


def _kernel(name: str, blocks: int, path: Path, passes: str) -> Kernel:
    command = [f"{_cuda()}/bin/ptxas", "-v", "-arch=sm_90a", str(path), "-o", os.devnull]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def number(pattern: str, where: str) -> int:
        return sum(int(x) for x in re.findall(pattern, where))

    ptx = path.read_text()
    return Kernel(
        name=name.split("__")[0],
        blocks=blocks,
        threads=number(r"\.reqntid (\d+)", ptx),
        registers=number(r"Used (\d+) registers", report),
        spilled_bytes=number(r"(\d+) bytes spill", report),
        shared_bytes=max(map(int, re.findall(r"ttg\.shared = (\d+)", passes)), default=0),
        tensor_core=len(re.findall(r"wgmma\.mma_async|mma\.sync", ptx)),
    )


def _cuda() -> Path:
    return directory() / "nvidia" / "cu13"


if __name__ == "__main__":
    install()
