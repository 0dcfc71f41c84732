"""Checkpoints' tokenizers agree with transformers, and come back from what is saved."""

import json
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmrl.errors import UserError
from mmrl.text import CharTokenizer, PretrainedTokenizer, load_tokenizer

pytestmark = pytest.mark.oracle
TEXTS = [
    "",
    "Hello, world! It's 2025; they'd say \"naïve\".",
    "a  1   23    456\t\t7\n\n\n8  \n",
    "def f(x):\n    return {x: [1, 2.5e-3]}  # 🙂\n",
    "東京は晴れ。 привет 👩‍👧‍👦 é é ½ ² Ⅷ ٣",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|im_end|",
    " leading and trailing \r\n",
    "\ufffd\u200b\u00a0\x00\x7f",
]
MESSAGES = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "<b>&"},
]


@pytest.fixture(scope="module")
def oracle(smollm2_gguf):
    """transformers' tokenizer with the digits alone, as SmolLM2's own tokenizer.json has them.

    Its GGUF loader leaves that step out, which shows where several spaces precede a digit.
    """
    loaded = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    backend = loaded.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return loaded


def assert_same_ids(smollm2, oracle, text):
    plain = oracle(text, split_special_tokens=True, add_special_tokens=False).input_ids
    assert smollm2.encode(text) == plain
    ids = smollm2.encode(text, special=True)
    assert ids == oracle(text, add_special_tokens=False).input_ids
    shown = [index for index in ids if index != smollm2.eos_id]
    assert smollm2.decode(ids) == oracle.decode(shown, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_has_the_ids_and_texts_of_transformers(smollm2, oracle, text):
    assert_same_ids(smollm2, oracle, text)


@settings(deadline=None)
@given(
    st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("a1 '\n\tsé🙂<|>")))
)
def test_smollm2_has_the_ids_and_texts_of_transformers_for_any_text(smollm2, oracle, text):
    assert_same_ids(smollm2, oracle, text)


def test_smollm2_has_the_special_ids_and_prompts_of_transformers(smollm2, oracle):
    assert smollm2.vocab_size == len(oracle) == 49_152
    assert smollm2.eos_id == smollm2.turn_end_id == oracle.eos_token_id
    assert smollm2.pad_id == oracle.pad_token_id
    assert smollm2.stop_ids == (oracle.convert_tokens_to_ids("<|im_end|>"),)
    prompt = smollm2.chat_template.render(MESSAGES)
    ids = oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert smollm2.encode(prompt, special=True) == ids


def test_ids_without_a_token_decode_to_replacements_and_stop_ids_to_nothing(smollm2):
    [word] = smollm2.encode(" word")
    half = smollm2.encode("🙂")[0]
    assert smollm2.decode([word, -1, smollm2.eos_id, 49_152, 10**12, word]) == (
        " word\ufffd\ufffd\ufffd word"
    )
    assert smollm2.decode([half, -1]) == "\ufffd\ufffd"


def assert_equal_tokenizers(ours, oracle, texts=TEXTS):
    for text in texts:
        ids = oracle(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=True) == ids
    assert ours.eos_id == oracle.eos_token_id
    assert ours.chat_template.render(MESSAGES) == oracle.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=False
    )


def test_transformers_loads_what_is_saved_from_a_gguf_file(smollm2, oracle, tmp_path):
    smollm2.save_pretrained(tmp_path / "hf")
    saved = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert_equal_tokenizers(smollm2, saved)
    assert_equal_tokenizers(load_tokenizer(tmp_path / "hf"), oracle)
    assert saved.pad_token_id == oracle.pad_token_id
    assert saved.convert_tokens_to_ids(saved.all_special_tokens)
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2]}
    # As part of an exported model, whose type has a tokenizer class of its own in transformers.
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}')
    assert_equal_tokenizers(smollm2, AutoTokenizer.from_pretrained(tmp_path / "hf"))


@pytest.fixture
def hf_directory(trained_bpe, tmp_path):
    """A directory that transformers saved, with a chat template of two stop tokens."""
    oracle = PreTrainedTokenizerFast(
        tokenizer_object=trained_bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    oracle.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    oracle.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 2], "temperature": 0.6})
    )
    return tmp_path / "hf", oracle


def test_a_directory_that_transformers_saved_gives_the_same_tokenizer(hf_directory):
    directory, oracle = hf_directory
    for path in (directory, directory / "tokenizer.json"):
        ours = PretrainedTokenizer(str(path))
        assert_equal_tokenizers(ours, oracle)
        assert ours.vocab_size == len(oracle)
        assert ours.pad_id == oracle.pad_token_id
        # eos_token, those of generation_config.json, and what ends a turn, each once.
        assert (ours.stop_ids, ours.turn_end_id) == ((1, 2, 3), 3)


def test_saving_copies_the_files_of_a_directory_and_saving_in_place_changes_nothing(hf_directory):
    directory, _ = hf_directory
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    tokenizer = PretrainedTokenizer(str(directory))
    tokenizer.save_pretrained(directory)
    tokenizer.save_pretrained(directory.parent / "copy")
    for place in (directory, directory.parent / "copy"):
        assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_another_chat_template_is_saved_in_place_of_the_checkpoints(hf_directory):
    directory, _ = hf_directory
    own = directory.parent / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.content }}</s>{% endfor %}")
    for template, turn_end in (("chatml", 3), (str(own), 1)):
        ours = PretrainedTokenizer(str(directory), template)
        assert ours.turn_end_id == turn_end
        ours.save_pretrained(directory.parent / "copy")
        saved = AutoTokenizer.from_pretrained(directory.parent / "copy")
        assert_equal_tokenizers(ours, saved)
    with pytest.raises(UserError, match=r"missing.jinja cannot be read.*chatml, llama3, m1, m2"):
        _ = PretrainedTokenizer(str(directory), "missing.jinja").chat_template
    with pytest.raises(UserError, match="no built-in chat template 'chatlm'. Did you mean chatml"):
        _ = PretrainedTokenizer(str(directory), "chatlm").chat_template


@pytest.mark.parametrize("as_files", [True, False])
def test_several_templates_of_a_checkpoint_survive_as_in_transformers(hf_directory, as_files):
    directory, oracle = hf_directory
    oracle.chat_template = {"default": oracle.chat_template, "tool_use": "tools!"}
    oracle.save_pretrained(directory, save_jinja_files=as_files)
    if not as_files:
        (directory / "chat_template.jinja").unlink()
    ours = PretrainedTokenizer(str(directory))
    ours.save_pretrained(directory.parent / "copy")
    for place in (directory, directory.parent / "copy"):
        ours, theirs = PretrainedTokenizer(str(place)), AutoTokenizer.from_pretrained(place)
        assert_equal_tokenizers(ours, theirs)
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        assert ours.chat_template.render(MESSAGES, tools) == "tools!"
        assert theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False) == "tools!"


def test_a_tokenizer_alone_has_no_template_and_asks_for_its_end_token(hf_directory, tmp_path):
    directory, oracle = hf_directory
    shutil.copy(directory / "tokenizer.json", tmp_path / "alone.json")
    alone = load_tokenizer(tmp_path / "alone.json")
    assert alone.chat_template is None
    assert alone.encode("The fox") == oracle("The fox").input_ids
    with pytest.raises(UserError, match="alone.json does not say which token ends a text: .*eos"):
        _ = alone.eos_id


def test_an_end_token_outside_the_vocabulary_is_an_error(hf_directory):
    directory, _ = hf_directory
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    with pytest.raises(UserError, match="its eos_token '<end>' is not in its vocabulary"):
        _ = PretrainedTokenizer(str(directory)).eos_id
    file.write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json: not JSON"):
        _ = PretrainedTokenizer(str(directory)).eos_id


def test_load_tokenizer_tells_the_kinds_apart_and_names_what_is_missing(hf_directory, tmp_path):
    directory, _ = hf_directory
    CharTokenizer("ab").save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path) == CharTokenizer("ab")
    assert load_tokenizer(directory) == PretrainedTokenizer(str(directory))
    with pytest.raises(UserError, match="no tokenizer .*none/tokenizer.json: expected a directory"):
        (tmp_path / "none").mkdir()
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=r"no tokenizer .*absent.json"):
        load_tokenizer(tmp_path / "absent.json")


def test_without_the_library_the_error_says_what_to_install(hf_directory, monkeypatch):
    directory, _ = hf_directory
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"hf needs tokenizers: pip install 'mmrl\[hf\]'"):
        _ = PretrainedTokenizer(str(directory)).vocab_size


def test_a_tokenizer_that_went_to_another_process_still_takes_special_tokens_as_text(smollm2):
    import pickle

    assert smollm2.encode("<|im_end|>") != [2]
    copy = pickle.loads(pickle.dumps(smollm2))
    assert copy == smollm2
    assert copy.encode("<|im_end|>") == smollm2.encode("<|im_end|>")
