"""The runs of a study, each a run of `mmrl.train` in a directory of its own, over processes.

A finished run is not repeated and a half one goes on from its checkpoint, so a study that was
stopped or killed at any moment continues by the command that began it.
"""

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path

import jax
from absl import flags

from mmrl import config as configs
from mmrl.compilation import enable_compilation_cache
from mmrl.errors import UserError
from mmrl.report.metrics import read_metrics
from mmrl.train import train
from mmrl.training.config import TrainConfig

PROCESSES = flags.DEFINE_integer("processes", 1, "Runs at once.", lower_bound=1)
GOES_ON = "the same command goes on from the checkpoints"


def run_all(runs: Mapping[str, TrainConfig], directory: Path, processes: int) -> None:
    """Trains each config in `directory/NAME`, unless it is finished, `processes` at once.

    Each process has its share of the cores, and what it prints is in `directory/NAME/log.txt`.
    Prints a line a run that ends.

    Raises:
        UserError: a directory holds a run of another config; a run failed or was stopped; a
            process was killed.
    """
    for name, config in runs.items():
        _check_config(directory / name, config)
    left = [name for name, config in runs.items() if not is_finished(directory / name, config)]
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    shares = context.Queue()
    for cores in core_shares(sorted(os.sched_getaffinity(0)), processes):
        shares.put(cores)
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, context, _begin_process, (shares,)) as pool:
        futures = {pool.submit(_run, runs[name], directory / name): name for name in left}
        try:
            for count, future in enumerate(as_completed(futures), len(runs) - len(left) + 1):
                name = futures[future]
                _result(future, directory / name)
                minutes = (time.perf_counter() - start) / 60
                found = read_metrics(directory / name)[-1].get("eval/solved")
                solved = "" if found is None else f"  held out solved {found:.3f}"
                print(f"[{count}/{len(runs)}] {minutes:5.1f} min  {name}{solved}", flush=True)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):  # the processes had it too, and saved
                raise UserError(f"stopped; {GOES_ON}") from error
            raise


def is_finished(workdir: Path, config: TrainConfig) -> bool:
    """Whether the run in `workdir` has its last checkpoint, hence all its metrics."""
    return (workdir / "checkpoints" / str(config.warmstart.steps + config.steps)).is_dir()


def core_shares(cores: Sequence[int], processes: int) -> list[tuple[int, ...]]:
    """The cores of each process: equal shares, and where there are too few the same ones again."""
    if len(cores) >= processes:
        return [tuple(cores[i::processes]) for i in range(processes)]
    return [(core,) for core in itertools.islice(itertools.cycle(cores), processes)]


def _check_config(workdir: Path, config: TrainConfig) -> None:
    file = workdir / "config.json"
    if file.exists() and configs.load_json(TrainConfig, file) != config:
        raise UserError(f"{workdir} holds a run of another config; choose another --workdir")


def _result(future: Future, workdir: Path) -> None:
    try:
        finished = future.result()
    except BrokenProcessPool as error:
        raise UserError(f"a process of the study was killed; {GOES_ON}") from error
    except UserError as error:
        raise UserError(f"{workdir}: {error}") from error
    except Exception as error:
        raise UserError(f"{workdir} failed: {error!r}; see {workdir}/log.txt") from error
    if not finished:
        raise UserError(f"stopped at {workdir}; {GOES_ON}")


def _begin_process(shares: Queue) -> None:
    """Takes a share of the cores, before XLA counts them, and ends when the study's process does.

    Without the watch a killed study would leave its processes waiting for work.
    """
    os.sched_setaffinity(0, shares.get())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    enable_compilation_cache()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(config: TrainConfig, workdir: Path) -> bool:
    """One run in this process; False if it was asked to stop before its end."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        return train(config, workdir)
    finally:
        jax.clear_caches()  # each run compiles its own programs
