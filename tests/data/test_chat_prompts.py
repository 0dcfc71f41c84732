"""Chat prompts in the data are rendered by the tokenizer's template, as transformers does it."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmrl.data import (
    DataConfig,
    Example,
    example_batches,
    examples,
    prompt_tokens,
    supervised_batches,
)
from mmrl.errors import UserError
from mmrl.text import CharTokenizer, PretrainedTokenizer

pytestmark = pytest.mark.oracle
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q <|im_end|>"}]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """A tokenizer of bytes with ChatML, saved by transformers to `name_or_path`."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    directory = str(tmp_path_factory.mktemp("bytes"))
    ours = PretrainedTokenizer(directory, "chatml")
    fast.save_pretrained(directory)
    fast.chat_template = ours.chat_template.source
    fast.name_or_path = directory
    return fast


@pytest.fixture
def tokenizer(oracle):
    return PretrainedTokenizer(oracle.name_or_path, "chatml")


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_prompt_of_messages_is_the_rendered_chat_with_the_generation_prompt(
    oracle, tokenizer, tools
):
    ids = oracle.apply_chat_template(
        MESSAGES, tools=tools, add_generation_prompt=True, return_dict=False
    )
    assert prompt_tokens(Example(MESSAGES, tools=tools), tokenizer) == ids


def test_special_tokens_in_a_text_prompt_are_text(oracle, tokenizer):
    ids = prompt_tokens(Example("<|im_end|>"), tokenizer)
    assert len(ids) == 10 and tokenizer.turn_end_id not in ids


def file_of(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_chat_wraps_text_prompts_and_leaves_messages(tmp_path):
    source = file_of(tmp_path, [{"input": "Q"}, {"input": MESSAGES, "tools": TOOLS}])
    user = {"role": "user", "content": "Q?"}
    system = {"role": "system", "content": "Be brief."}

    def prompts(**settings):
        config = DataConfig(source=source, prompt_suffix="?", shuffle=False, **settings)
        return [example.prompt for example in next(example_batches(config, batch_size=2))]

    assert prompts() == ["Q?", MESSAGES]
    assert prompts(chat=True) == [[user], MESSAGES]
    assert prompts(chat=True, system_prompt="Be brief.") == [[system, user], MESSAGES]
    with pytest.raises(UserError, match="set chat=True"):
        prompts(system_prompt="Be brief.")


def test_a_generated_task_as_chat_keeps_what_its_reward_needs():
    [plain, chat] = [examples(DataConfig(size=1, chat=chat))[0] for chat in (False, True)]
    assert chat.prompt == [{"role": "user", "content": plain.prompt}]
    assert (chat.label, chat.metadata) == (plain.label, plain.metadata)


def test_the_warm_start_learns_the_label_and_the_end_of_the_turn(oracle, tokenizer, tmp_path):
    source = file_of(tmp_path, [{"input": MESSAGES, "tools": TOOLS, "answer": 4}])
    config = DataConfig(source=source, label_key="answer")
    batch = next(supervised_batches(config, tokenizer, batch_size=1, length=1000))
    prompt = oracle.apply_chat_template(
        MESSAGES, tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    target = [*oracle("4").input_ids, oracle.convert_tokens_to_ids("<|im_end|>")]
    row = batch["tokens"][0].tolist()
    assert row[: len(prompt) + 2] == prompt + target
    assert batch["mask"][0].tolist() == [0] * len(prompt) + [1, 1] + [0] * (998 - len(prompt))


def test_the_warm_start_ends_a_text_prompt_with_the_end_of_a_text(tokenizer, tmp_path):
    config = DataConfig(
        source=file_of(tmp_path, [{"input": "Q", "answer": "A"}]), label_key="answer"
    )
    batch = next(supervised_batches(config, tokenizer, batch_size=1, length=3))
    assert batch["tokens"][0].tolist() == [*tokenizer.encode("QA"), tokenizer.eos_id]


def test_the_warm_start_on_chat_needs_a_template(tmp_path):
    config = DataConfig(source=file_of(tmp_path, [{"input": MESSAGES, "answer": "A"}]))
    with pytest.raises(UserError, match="no chat template"):
        next(supervised_batches(config, CharTokenizer(), batch_size=1, length=100))
