"""Streamed text is the decoded text, and no piece of it ends within a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.text import CharTokenizer, StreamDecoder

# Characters of one to four bytes, which the tokenizer splits in different ways. The few bytes that
# its vocabulary lacks, such as control characters, are lost in encoding.
FAMILIAR = "aé€漢🙂👩‍👧 \n"
TEXTS = st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(FAMILIAR)))


def stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(index) for index in ids]
    return pieces, decoder.finish()


@settings(deadline=None)
@given(text=TEXTS)
def test_every_character_comes_whole_and_at_the_latest_with_its_last_id(smollm2, text):
    ids = smollm2.encode(text)
    pieces, rest = stream(smollm2, ids)
    assert "".join(pieces) + rest == smollm2.decode(ids)
    for count in range(len(ids) + 1):
        shown = "".join(pieces[:count])
        so_far = smollm2.decode(ids[:count])
        assert shown == so_far.removesuffix("\ufffd")


@settings(deadline=None)
@given(text=st.text(alphabet=FAMILIAR))
def test_text_that_the_vocabulary_covers_comes_back_without_replacements(smollm2, text):
    pieces, rest = stream(smollm2, smollm2.encode(text))
    assert ("".join(pieces), rest) == (text, "")


@settings(deadline=None)
@given(ids=st.lists(st.integers(-2, 49_160)))
def test_any_ids_give_the_text_of_decode_stop_ids_and_unknown_ones_included(smollm2, ids):
    pieces, rest = stream(smollm2, ids)
    assert "".join(pieces) + rest == smollm2.decode(ids)


@pytest.fixture(scope="module")
def parts_of_characters(smollm2):
    return [i for i in range(smollm2.vocab_size) if "\ufffd" in smollm2.decode([i])]


@settings(deadline=None)
@given(data=st.data())
def test_any_parts_of_characters_give_the_text_of_decode(smollm2, parts_of_characters, data):
    ids = data.draw(st.lists(st.sampled_from(parts_of_characters), max_size=80))
    pieces, rest = stream(smollm2, ids)
    assert "".join(pieces) + rest == smollm2.decode(ids)


def test_stop_ids_give_no_text_and_do_not_end_the_stream(smollm2):
    [first, second] = smollm2.encode("a b")
    assert stream(smollm2, [first, smollm2.eos_id, second]) == (["a", "", " b"], "")


def test_a_character_that_never_ends_comes_last_as_a_replacement(smollm2):
    ids = smollm2.encode("ok🙂")[:-1]
    pieces, rest = stream(smollm2, ids)
    assert ("".join(pieces), rest) == ("ok", "\ufffd")


def test_a_long_stream_decodes_a_bounded_number_of_ids_at_a_time(smollm2, monkeypatch):
    lengths = []

    class Counting:
        pad_id, stop_ids = smollm2.pad_id, smollm2.stop_ids

        def decode(self, ids):
            lengths.append(len(ids))
            return smollm2.decode(ids)

    half = smollm2.encode("🙂")[0]
    assert smollm2.decode([half]) == "\ufffd"
    ids = [half] * 500 + smollm2.encode("word " * 500)
    pieces, rest = stream(Counting(), ids)
    assert "".join(pieces) + rest == smollm2.decode(ids)
    assert max(lengths) <= 20 and len(lengths) <= 2 * len(ids) + 1


def test_characters_of_a_char_tokenizer_come_one_by_one():
    tokenizer = CharTokenizer("ab", phrases=("aba",))
    assert stream(tokenizer, [3, 5, 1, 4]) == (["a", "aba", "", "b"], "")
