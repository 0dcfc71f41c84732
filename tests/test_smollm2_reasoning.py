"""The demo on a real model: its prompts fit, and what it trains answers alike in transformers.

With MMRL_SMOLLM2_RUN=DIR the export is that of a run directory, else of the model it starts from.
"""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.convert import convert
from mmrl.data import examples, prompt_tokens
from mmrl.models import load
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout.sampler import pad_prompts
from mmrl.training.config import TrainConfig

CONFIG = Path(__file__).parents[1] / "configs" / "smollm2_reasoning.py"
PROMPTS = 50


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return configs.load(CONFIG)


def test_every_task_is_drawn_and_its_prompts_fit(config):
    tasks = set()
    for split in ("train", "held_out"):
        source = examples(dataclasses.replace(config.data, split=split))
        for index in range(200):
            example = source[index]
            tasks.add(example.metadata["dataset"])
            assert len(prompt_tokens(example, config.tokenizer)) <= config.prompt_length
    assert tasks == set(config.data.datasets)


@pytest.mark.oracle
@pytest.mark.slow
def test_the_export_answers_greedily_as_mmrl_does(config, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = os.environ.get("MMRL_SMOLLM2_RUN", config.initial)
    held_out = examples(dataclasses.replace(config.data, split="held_out"))
    prompts = [prompt_tokens(held_out[index], config.tokenizer) for index in range(PROMPTS)]

    model, tokenizer = load(source)
    greedy = SamplingConfig(
        group_size=1,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=0.0,
        stop_ids=tokenizer.stop_ids,
    )
    rollout = generate(model, pad_prompts(prompts), greedy, jax.random.key(0))
    lengths = np.asarray(rollout.lengths)[:, 0]
    tokens = np.asarray(rollout.tokens)[:, 0]
    ours = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    del model, rollout

    convert(Path(source), tmp_path / "export")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for prompt, answer in zip(prompts, ours, strict=True):
        generated = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=greedy.max_new_tokens,
        )
        assert generated[0, len(prompt) :].tolist() == answer
