"""Tokenizers of GGUF files agree with transformers' for every pre-tokenizer that is read."""

import json
import random

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, Qwen2Tokenizer

from mmrl.errors import UserError
from mmrl.text import PretrainedTokenizer

pytestmark = pytest.mark.oracle
NAMES = ["default", "gpt-2", "gpt-4o", "llama-bpe", "minimax-m2", "qwen2"]
ALPHABET = "aB lLdDrReE'éß東🙂1234567 \r\n\t/!.²½\u0301Ⅷ"


def write(path, backend, **changes):
    """A GGUF file with the vocabulary of `backend`; ids 0 to 3 are control tokens."""
    vocab = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    writer = gguf.GGUFWriter(path, "llama")
    fields = {"model": "gpt2", "pre": "gpt-2"} | changes
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [4 if token == "<think>" else 1 for token in tokens[4:]])
    if fields.get("merges", True):
        writer.add_token_merges(merges_of(backend))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if "eot" in fields:
        writer.add_eot_token_id(fields["eot"])
    if "template" in fields:
        writer.add_chat_template(fields["template"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges_of(backend):
    return [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


@pytest.fixture(scope="module")
def spanning_bpe():
    """BPE whose tokens span words, digits and lines, so that every split of a text shows."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    texts = ["".join(rng.choices(ALPHABET, k=12)) for _ in range(5000)]
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.fixture(scope="module")
def files(tmp_path_factory, spanning_bpe):
    """{pre-tokenizer: a GGUF file}, all with one vocabulary."""
    directory = tmp_path_factory.mktemp("gguf")
    return {name: write(directory / f"{name}.gguf", spanning_bpe, pre=name) for name in NAMES}


@pytest.fixture(scope="module")
def pairs(files, spanning_bpe):
    """{pre-tokenizer: (ours, transformers')}, of its own classes where there is one."""
    vocab, merges = spanning_bpe.get_vocab(), [tuple(m.split(" ")) for m in merges_of(spanning_bpe)]
    theirs = {
        name: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        for name, path in files.items()
    }
    theirs["qwen2"] = Qwen2Tokenizer(vocab=vocab, merges=merges)
    theirs["gpt-2"] = GPT2Tokenizer(vocab=vocab, merges=merges)
    return {name: (PretrainedTokenizer(str(files[name])), theirs[name]) for name in NAMES}


@settings(deadline=None)
@given(text=st.text(alphabet=ALPHABET))
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(pairs, name, text):
    ours, theirs = pairs[name]
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_pre_tokenizers_differ_on_what_the_tests_draw(pairs):
    text = "".join(random.Random(1).choices(ALPHABET, k=1000))
    ids = {name: tuple(pairs[name][0].encode(text)) for name in NAMES}
    assert len({ids[name] for name in ("gpt-2", "gpt-4o", "llama-bpe", "qwen2")}) == 4
    assert ids["default"] == ids["gpt-2"] and ids["minimax-m2"] == ids["gpt-4o"]


def test_llama3_takes_a_word_of_the_vocabulary_whole_without_its_merges(trained_bpe, tmp_path):
    # llama.cpp sets ignore_merges for this pre-tokenizer, as Llama 3's tokenizer.json does.
    content = json.loads(trained_bpe.to_str())
    content["model"]["vocab"]["zyxw"] = whole = trained_bpe.get_vocab_size()
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    for name, expected in (("llama-bpe", True), ("gpt-2", False)):
        ours = PretrainedTokenizer(str(write(tmp_path / f"{name}.gguf", backend, pre=name)))
        assert (ours.encode("zyxw") == [whole]) is expected


def test_user_defined_tokens_stay_whole_and_control_tokens_only_when_asked(trained_bpe, tmp_path):
    backend = tokenizers.Tokenizer.from_str(trained_bpe.to_str())
    backend.add_tokens(["<think>"])
    ours = PretrainedTokenizer(str(write(tmp_path / "t.gguf", backend)))
    think = backend.token_to_id("<think>")
    assert ours.encode("<think></s>", special=True) == [think, 1]
    assert ours.encode("<think></s>")[0] == think and ours.encode("</s>") != [1]
    assert ours.decode([think, 2, 1]) == "<think><|im_start|>"


def test_end_tokens_and_template_come_from_the_metadata(trained_bpe, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    path = write(tmp_path / "t.gguf", trained_bpe, eot=2, template=template)
    ours = PretrainedTokenizer(str(path))
    assert (ours.eos_id, ours.stop_ids, ours.turn_end_id) == (1, (1, 2, 3), 3)
    assert ours.chat_template.render([{"role": "user", "content": "Hi"}]) == "<s>Hi<|im_end|>"


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_what_is_saved_puts_bos_first_in_transformers_where_llama_cpp_does(files, tmp_path, name):
    ours = PretrainedTokenizer(str(files[name]))
    ours.save_pretrained(tmp_path / "hf")
    saved = AutoTokenizer.from_pretrained(tmp_path / "hf")
    bos = [0] if name == "llama-bpe" else []
    assert saved("The fox").input_ids == bos + ours.encode("The fox")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "t.gguf: tokenizer model 'llama' is not supported; 'gpt2' is"),
        ({"pre": "qwen"}, "pre-tokenizer 'qwen' is not supported. Did you mean qwen2.*smollm"),
        ({"merges": False}, "expected tokenizer.ggml.merges"),
    ],
)
def test_what_is_not_supported_is_named_with_what_is(trained_bpe, tmp_path, changes, message):
    path = write(tmp_path / "t.gguf", trained_bpe, **changes)
    with pytest.raises(UserError, match=message):
        _ = PretrainedTokenizer(str(path)).vocab_size


def test_files_without_a_tokenizer_are_named(tmp_path):
    (tmp_path / "t.gguf").write_bytes(b"GGML")
    with pytest.raises(UserError, match="t.gguf: expected a GGUF file"):
        _ = PretrainedTokenizer(str(tmp_path / "t.gguf")).vocab_size
    with pytest.raises(UserError, match="no GGUF file .*u.gguf. Did you mean .*t.gguf"):
        _ = PretrainedTokenizer(str(tmp_path / "u.gguf")).vocab_size
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="holds no tokenizer"):
        _ = PretrainedTokenizer(str(tmp_path / "t.gguf")).vocab_size
