"""What is compiled before the first step is what the first step runs."""

import threading
from dataclasses import replace

import jax
from tiny_run import TESTS

from mmrl import config as configs
from mmrl.train import train


def test_the_supervised_update_is_compiled_once_and_in_another_thread(
    data_file, tmp_path, caplog, monkeypatch
):
    monkeypatch.chdir(data_file.parent)
    config = configs.load(TESTS / "configs" / "copy_letter.py")
    # A shape that no other test has compiled in this process.
    warmstart = replace(config.warmstart, steps=2, batch_size=7)
    jax.config.update("jax_log_compiles", True)  # of all threads, as `jax.log_compiles` is not
    try:
        assert train(replace(config, warmstart=warmstart, steps=1), tmp_path / "run")
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [
        record
        for record in caplog.records
        if "Finished XLA compilation of jit(supervised_update)" in record.getMessage()
    ]
    assert len(compiled) == 1
    assert compiled[0].thread != threading.main_thread().ident
