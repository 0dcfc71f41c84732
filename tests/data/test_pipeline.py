import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.config import from_dict, to_dict
from mmrl.data import DataConfig, example_batches, examples, supervised_batches
from mmrl.data.pipeline import document_batches
from mmrl.errors import UserError
from mmrl.text import CharTokenizer

TOKENIZER = CharTokenizer()
SUMS = DataConfig(datasets={"chain_sum": {"max_terms": 3}}, prompt_suffix="\n")


def file_config(path, count, **settings):
    rows = ({"input": f"prompt {i}", "answer": "x" * (i % 7)} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source=str(path), label_key="answer", **settings)


def prompts(batches):
    return [[example.prompt for example in batch] for batch in batches]


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_each_epoch_holds_every_row_once_in_an_order_of_its_own(tmp_path):
    config = file_config(tmp_path / "rows.jsonl", 11)
    stream = flat(prompts(take(example_batches(config, batch_size=4), 11)))
    epochs = [stream[start : start + 11] for start in (0, 11, 22, 33)]
    assert all(sorted(epoch) == sorted(f"prompt {i}" for i in range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != sorted(epochs[0])


def test_without_shuffling_the_order_is_that_of_the_file(tmp_path):
    config = file_config(tmp_path / "rows.jsonl", 3, shuffle=False)
    batches = prompts(take(example_batches(config, batch_size=2), 3))
    assert batches == [["prompt 0", "prompt 1"], ["prompt 2", "prompt 0"], ["prompt 1", "prompt 2"]]


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_the_processes_parts_of_a_batch_are_the_batch_also_where_epochs_meet(
    tmp_path, process_count
):
    config = file_config(tmp_path / "rows.jsonl", 13)
    whole = prompts(take(example_batches(config, batch_size=6), 13))
    shards = [
        prompts(
            take(
                example_batches(
                    config, batch_size=6, process_index=index, process_count=process_count
                ),
                13,
            )
        )
        for index in range(process_count)
    ]
    for batch, parts in zip(whole, zip(*shards, strict=True), strict=True):
        assert {len(part) for part in parts} == {6 // process_count}
        assert batch == flat(parts)
    # Six epochs of 13, counted over all processes: every row six times.
    assert Counter(flat(flat(shards))) == Counter([f"prompt {i}" for i in range(13)] * 6)


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_processes_rows_of_a_supervised_batch_are_the_batch(tmp_path, process_count):
    def numbered(index, example):
        return replace(example, prompt=f"{index}: {example.prompt}")

    def batches(**place):
        settings = dict(batch_size=6, length=24, prepare=numbered, **place)
        return take(supervised_batches(config, TOKENIZER, **settings), 5)

    config = file_config(tmp_path / "rows.jsonl", 13)
    places = [dict(process_index=i, process_count=process_count) for i in range(process_count)]
    parts = zip(*(batches(**place) for place in places), strict=True)
    joined = [{key: np.concatenate([p[key] for p in part]) for key in part[0]} for part in parts]
    assert_equal(joined, batches())


def test_a_state_is_the_same_for_every_number_of_processes(tmp_path):
    config = file_config(tmp_path / "rows.jsonl", 13)
    states = []
    for place in ({}, {"process_index": 2, "process_count": 3}):
        iterator = example_batches(config, batch_size=6, **place)
        take(iterator, 4)
        states.append(iterator.get_state())
    assert states[0] == states[1]


@settings(max_examples=10, deadline=None)
@given(before=st.integers(0, 9), after=st.integers(1, 5), ahead=st.integers(0, 7))
def test_a_resumed_iterator_continues_where_the_state_was_taken(before, after, ahead):
    config = DataConfig(size=60, seed=5)  # several epochs, cut in the middle
    uninterrupted = take(example_batches(config, batch_size=25), before + after)
    iterator = example_batches(config, batch_size=25)
    take(iterator, before)
    state = json.loads(json.dumps(iterator.get_state()))
    take(iterator, ahead)
    iterator.set_state(state)
    resumed = example_batches(config, batch_size=25)
    resumed.set_state(state)
    assert take(iterator, after) == take(resumed, after) == uninterrupted[before:]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_resumed_supervised_batches_equal_uninterrupted_ones(pack, before):
    def batches():
        return supervised_batches(SUMS, TOKENIZER, batch_size=4, length=256, pack=pack)

    uninterrupted = take(batches(), before + 3)
    iterator = batches()
    take(iterator, before)
    resumed = batches()
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    assert_equal(take(resumed, 3), uninterrupted[before:])


def unpacked(batches):
    """(text, target text) of each example, read back cell by cell."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            segments = batch["segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                cells = [t for t in range(len(segments)) if segments[t] == segment]
                assert [batch["positions"][row][t] for t in cells] == list(range(len(cells)))
                assert cells == list(range(cells[0], cells[0] + len(cells)))
                tokens = [batch["tokens"][row][t] for t in cells]
                targets = [batch["tokens"][row][t] for t in cells if batch["mask"][row][t] == 1]
                assert tokens[-1] == targets[-1] == TOKENIZER.eos_id
                assert TOKENIZER.eos_id not in tokens[:-1]
                found.append((TOKENIZER.decode(tokens), TOKENIZER.decode(targets)))
    return found


@pytest.mark.parametrize("pack", [False, True])
def test_rows_keep_every_token_and_boundary_of_the_examples(tmp_path, pack):
    config = file_config(tmp_path / "rows.jsonl", 40, prompt_suffix=" =")
    batches = take(supervised_batches(config, TOKENIZER, batch_size=3, length=50, pack=pack), 4)
    for batch in batches:
        assert {key: value.shape for key, value in batch.items()} == dict.fromkeys(
            ("tokens", "mask", "segment_ids", "positions"), (3, 50)
        )
        padding = batch["segment_ids"] == 0
        assert not batch["tokens"][padding].any() and not batch["mask"][padding].any()
        assert (batch["mask"].dtype, batch["tokens"].dtype) == (np.float32, np.int32)
    found = unpacked(batches)
    stream = flat(take(example_batches(config, batch_size=1), len(found)))
    expected = [(example.prompt + example.label, example.label) for example in stream]
    assert Counter(found) == Counter(expected)
    if not pack:
        assert found == expected and len(found) == 12
    else:
        assert len(found) > 24  # at least two a row: an example has at most 17 tokens


def test_packed_examples_of_the_processes_are_disjoint(tmp_path):
    config = file_config(tmp_path / "rows.jsonl", 1000)
    found = [
        unpacked(
            take(
                supervised_batches(
                    config,
                    TOKENIZER,
                    batch_size=4,
                    length=64,
                    pack=True,
                    process_index=index,
                    process_count=2,
                ),
                10,
            )
        )
        for index in range(2)
    ]
    assert not set(found[0]) & set(found[1])


def test_supervised_batches_refuse_what_they_would_have_to_cut_or_guess(tmp_path):
    config = file_config(tmp_path / "rows.jsonl", 1)
    for changed, length, message in [
        (config, 8, "8 prompt and 1 target tokens, more than 8: raise the length"),
        (DataConfig(source=config.source), 50, "text label, got None for 'prompt 0'.*label_key"),
    ]:
        with pytest.raises(ValueError, match=message):
            next(supervised_batches(changed, TOKENIZER, batch_size=1, length=length))
    assert next(supervised_batches(config, TOKENIZER, batch_size=1, length=9))["mask"].sum() == 1


def test_a_worked_episode_teaches_the_models_own_turns_alone(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"input": "1+2+3=", "label": ["1+2", "3", "3+3", "6", "6"]}'
    )
    config = DataConfig(source=str(tmp_path / "rows.jsonl"), label_key="label")
    batch = next(supervised_batches(config, TOKENIZER, batch_size=1, length=24))
    end = TOKENIZER.eos_id
    said = [[*TOKENIZER.encode(text), end] for text in ("1+2", "3+3", "6")]
    given = [TOKENIZER.encode(text) for text in ("1+2+3=", "3", "6")]
    turns = [turn for pair in zip(given, said, strict=True) for turn in pair]
    expected = [token for turn in turns for token in turn]
    assert batch["tokens"][0, : len(expected)].tolist() == expected
    mask = [int(i % 2) for i, turn in enumerate(turns) for _ in turn]
    assert batch["mask"][0].tolist() == mask + [0] * (24 - len(mask))


def test_examples_are_one_epoch_with_the_suffix_on_their_prompts():
    dataset = examples(SUMS)
    assert len(dataset) == 1_000_000
    assert dataset[5].prompt == dataset[5].metadata["entry"]["question"] + "\n"
    held_out = examples(DataConfig(split="held_out", size=20))
    assert len({held_out[index].prompt for index in range(20)}) > 15


def test_a_config_survives_json():
    assert from_dict(DataConfig, json.loads(json.dumps(to_dict(SUMS)))) == SUMS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be from 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"held_out_every": 1}, "held_out_every must be at least 2"),
        ({"split": "test"}, "split must be 'train' or 'held_out'"),
        (
            {"source": "a.jsonl", "split": "held_out"},
            r"files have no held_out.*a.jsonl.*path@\[a:b\]",
        ),
    ],
)
def test_a_config_refuses_values_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 must be a positive multiple of 2"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index must be"),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        example_batches(SUMS, **sizes)


def document_file(path, texts: list[str]) -> DataConfig:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig(source=str(path), input_key="text", shuffle=False)


def test_documents_fill_rows_one_after_another_and_go_on_in_the_next(tmp_path):
    """Unpacked again, the rows are the texts with their ends, in order."""
    texts = ["abc", "d" * 23, "ef", "g", "hijklmn"]
    data = document_file(tmp_path / "texts.jsonl", texts)
    iterator = document_batches(data, TOKENIZER, batch_size=2, length=8)
    batches = [next(iterator) for _ in range(4)]
    tokens = np.concatenate([batch["tokens"].ravel() for batch in batches])
    expected = [t for text in texts * 3 for t in [*TOKENIZER.encode(text), TOKENIZER.eos_id]]
    assert tokens.tolist() == expected[: len(tokens)]
    firsts = np.cumsum([0] + [len(text) + 1 for text in texts * 3])
    mask = np.concatenate([batch["mask"].ravel() for batch in batches])
    assert np.flatnonzero(mask == 0).tolist() == [i for i in firsts if i < len(tokens)]
    for row, positions, segments in zip(
        *(batches[0][name] for name in ("tokens", "positions", "segment_ids")), strict=True
    ):
        ends = np.flatnonzero(row == TOKENIZER.eos_id)
        assert segments.tolist() == [1 + int((ends < t).sum()) for t in range(8)]
        assert (positions[0], segments[0]) == (0, 1)


def test_document_rows_continue_exactly_from_their_state(tmp_path):
    data = document_file(tmp_path / "texts.jsonl", ["abc", "d" * 23, "ef", "g", "hijklmn"])
    iterator = document_batches(data, TOKENIZER, batch_size=1, length=8)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    other = document_batches(data, TOKENIZER, batch_size=1, length=8)
    other.set_state(state)
    for _ in range(6):
        assert_equal([next(iterator)], [next(other)])


def test_sources_mix_by_their_weights(tmp_path):
    """Three to one, in any long stretch and exactly over four."""
    sources = [
        (document_file(tmp_path / "a.jsonl", ["aaa"]), 3.0),
        (document_file(tmp_path / "b.jsonl", ["bbb"]), 1.0),
    ]
    iterator = document_batches(sources, TOKENIZER, batch_size=2, length=16)
    tokens = np.concatenate([next(iterator)["tokens"].ravel() for _ in range(4)])
    a, b = ((tokens == TOKENIZER.encode(letter)[0]).sum() for letter in "ab")
    assert (a, b) == (3 * 24, 3 * 8)


def test_pretraining_needs_texts(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"text": [{"role": "user", "content": "x"}]}) + "\n")
    data = DataConfig(source=str(path), input_key="text")
    with pytest.raises(UserError, match="pretraining needs texts"):
        next(document_batches(data, TOKENIZER, batch_size=1, length=8))
