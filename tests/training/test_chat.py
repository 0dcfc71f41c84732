"""Runs on chat prompts with a pretrained tokenizer: configured, trained and saved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.text import PretrainedTokenizer, load_tokenizer
from mmrl.train import train
from mmrl.training.config import TrainConfig

CONFIG = Path(__file__).parents[1] / "configs" / "copy_letter.py"


@pytest.fixture
def directory(tmp_path):
    """A tokenizer.json of characters and ChatML's tokens."""
    special = ["<|im_end|>", "<|im_start|>"]
    vocab = [*special, *sorted(set("system user assistant abcd>:\n".replace(" ", "")))]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    return directory


@pytest.fixture
def config(directory):
    tokenizer = PretrainedTokenizer(str(directory), "chatml")
    base = configs.load(CONFIG)
    data = replace(base.data, chat=True, system_prompt="abcd")
    return replace(
        base,
        tokenizer=tokenizer,
        data=data,
        model=replace(base.model, vocab_size=tokenizer.vocab_size),
        evaluation=replace(base.evaluation, data=replace(data, shuffle=False), prompts=4),
        warmstart=replace(base.warmstart, steps=0, length=96),
        prompt_length=96,
        steps=1,
        rollouts_interval=1,
    )


def test_a_pretrained_tokenizer_survives_json_and_overrides(config, directory, tmp_path):
    configs.save_json(config, tmp_path / "config.json")
    assert configs.load_json(TrainConfig, tmp_path / "config.json") == config
    base = configs.load(CONFIG)
    changes = {"tokenizer.path": str(directory), "model.vocab_size": "64"}
    assert configs.override(base, changes).tokenizer == PretrainedTokenizer(str(directory))
    changed = configs.override(config, {"tokenizer.template": "m1"})
    assert changed.tokenizer == PretrainedTokenizer(str(directory), "m1")


def test_a_config_whose_parts_do_not_fit_the_tokenizer_is_refused(config, directory):
    with pytest.raises(UserError, match=r"data.chat needs a tokenizer with a chat template"):
        configs.override(config, {"tokenizer.template": "none"})
    with pytest.raises(UserError, match=r"model.vocab_size=3 is smaller than the tokenizer's \d+"):
        configs.override(config, {"model.vocab_size": "3"})
    with pytest.raises(UserError, match=r"no tokenizer .*nowhere"):
        configs.override(config, {"tokenizer.path": "nowhere"})


def test_a_run_on_chat_prompts_keeps_its_tokenizer(config, data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(data_file.parent)
    assert train(config, tmp_path / "run")
    saved = load_tokenizer(tmp_path / "run")
    assert saved.chat_template.source == config.tokenizer.chat_template.source
    assert saved.stop_ids == config.tokenizer.stop_ids
    [file] = (tmp_path / "run" / "rollouts").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == config.prompts_per_step * config.sampling.group_size
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["prompt"][1]["content"] == f"{row['label']}>"
