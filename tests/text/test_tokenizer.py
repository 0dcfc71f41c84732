import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.text import CharTokenizer, load_tokenizer


@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " \n"))
def test_printable_ascii_survives_the_round_trip_with_one_id_a_character(text):
    tokenizer = CharTokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert all(3 <= index < tokenizer.vocab_size for index in ids)
    assert tokenizer.decode(ids) == text


def test_ids_follow_the_order_of_the_alphabet_after_the_special_ids():
    tokenizer = CharTokenizer("ba")
    assert tokenizer.encode("abba") == [4, 3, 3, 4]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.stop_ids) == (0, 1, (1,))
    assert tokenizer.vocab_size == 5


def test_a_phrase_is_one_id_and_the_longest_that_fits_wins():
    tokenizer = CharTokenizer("abc", phrases=("ab", "abc"))
    assert tokenizer.encode("aabcab") == [3, 7, 6]
    assert tokenizer.decode([3, 7, 6]) == "aabcab"
    assert tokenizer.vocab_size == 8


@pytest.mark.parametrize("phrases", [("ab", "ab"), ("a",), ("",)])
def test_phrases_must_differ_and_be_longer_than_a_character(phrases):
    with pytest.raises(ValueError, match="phrases"):
        CharTokenizer("abc", phrases=phrases)


def test_decode_drops_padding_and_end_and_shows_ids_without_a_character():
    assert CharTokenizer("ba").decode([4, 2, 3, 99, -1, 1, 0, 0]) == "a\ufffdb\ufffd\ufffd"


def test_unknown_characters_are_an_error_that_names_them_or_the_unknown_id():
    with pytest.raises(ValueError, match=r"'é' at position 2 of 'baé'.*alphabet"):
        CharTokenizer("ba").encode("baé")
    assert CharTokenizer("ba", unknown="replace").encode("baé") == [3, 4, 2]


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_an_alphabet_must_hold_each_character_once(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        CharTokenizer(alphabet)


def test_a_saved_tokenizer_loads_equal(tmp_path):
    tokenizer = CharTokenizer("ba×\n", phrases=("ab", "bb"), unknown="replace")
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"type": "bpe"}', '{"type": "char", "x": 1}'])
def test_a_broken_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer file"):
        load_tokenizer(path)
