"""Files against the library `safetensors`, shards against huggingface_hub, slices against numpy."""

import json
import math
import os
import shutil
import tracemalloc

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from mmrl.errors import UserError
from mmrl.models.pretrained import tensors as lazy
from mmrl.models.pretrained.safetensors import (
    DTYPES,
    INDEX,
    SINGLE,
    TensorSpec,
    open_safetensors,
    write_safetensors,
)

BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
MIB = 2**20


def random_array(shape, dtype, seed=0) -> np.ndarray:
    """Random bits, every NaN among them; booleans are 0 or 1."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    high = 2 if dtype == np.bool_ else 256
    bits = rng.integers(0, high, math.prod(shape) * dtype.itemsize, np.uint8)
    return bits.view(dtype).reshape(shape)


def some_arrays() -> dict[str, np.ndarray]:
    return {
        "model.b": random_array((3, 5), BFLOAT16, 1),
        "model.a": random_array((7,), np.float32, 2),
        "model.scalar": random_array((), np.float64, 3),
        "model.empty": random_array((0, 4), np.float16, 4),
        "lm_head": random_array((2, 3, 4), np.float32, 5),
    }


def specs_of(arrays) -> list[TensorSpec]:
    return [TensorSpec(name, array.shape, array.dtype) for name, array in arrays.items()]


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def assert_holds(path, arrays):
    tensors = open_safetensors(path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        assert_same(tensors[name][...], array)


@pytest.fixture
def directory(tmp_path):
    """`some_arrays` in two shards with an index, all written by the libraries."""
    arrays = list(some_arrays().items())
    shards = {"model-00001-of-00002.safetensors": dict(arrays[:2])}
    shards["model-00002-of-00002.safetensors"] = dict(arrays[2:])
    for file, held in shards.items():
        safetensors.numpy.save_file(held, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


FLOAT8_KINDS = ("F8_E4M3", "F8_E5M2")  # read as weights with scales: test_fp8.py


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind not in FLOAT8_KINDS])
@settings(deadline=None)
@given(data=st.data())
def test_any_index_equals_numpys_of_the_whole_array(tmp_path_factory, kind, data):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    index = data.draw(hypothesis_numpy.basic_indices(shape, allow_ellipsis=True))
    array = random_array(shape, DTYPES[kind])
    file = tmp_path_factory.getbasetemp() / f"{kind}.safetensors"
    safetensors.numpy.save_file({"before": random_array((3,), np.int8), "x": array}, file)
    assert_same(np.asarray(open_safetensors(file)["x"][index]), np.asarray(array[index]))


@pytest.mark.parametrize("index", [4, -6, (0, 3), (slice(9), 0, 0)])
def test_an_index_outside_of_the_tensor_is_an_index_error_as_in_numpy(tmp_path, index):
    array = random_array((4, 3), np.float32)
    safetensors.numpy.save_file({"x": array}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    for indexed in (array, tensor):
        with pytest.raises(IndexError):
            indexed[index]


@pytest.mark.parametrize(
    "index", [np.s_[...], np.s_[2:4], np.s_[:, 1:3], np.s_[5, :, 2:], np.s_[:0]]
)
def test_only_the_bytes_of_the_index_are_read(tmp_path, monkeypatch, index):
    array = random_array((6, 4, 8), BFLOAT16)
    safetensors.numpy.save_file({"x": array}, tmp_path / SINGLE)
    tensor = open_safetensors(tmp_path)["x"]
    read = []
    monkeypatch.setattr(
        lazy.os, "preadv", lambda *a, preadv=os.preadv: read.append(preadv(*a)) or read[-1]
    )
    assert_same(tensor[index], array[index])
    assert sum(read) == array[index].nbytes


def test_reads_that_the_system_cuts_short_are_continued(tmp_path, monkeypatch):
    array = random_array((100, 3), np.float32)
    safetensors.numpy.save_file({"x": array}, tmp_path / SINGLE)
    preadv = os.preadv
    monkeypatch.setattr(lazy.os, "preadv", lambda fd, to, at: preadv(fd, [to[0][:7]], at))
    assert_same(open_safetensors(tmp_path)["x"][3:90], array[3:90])


def test_reading_a_slice_takes_the_memory_of_the_slice(tmp_path):
    array = np.zeros((64, MIB), np.uint8)
    safetensors.numpy.save_file({"x": array}, tmp_path / SINGLE)
    tracemalloc.start()
    held = open_safetensors(tmp_path)["x"][8:16]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held.nbytes <= peak < held.nbytes + MIB


def test_a_directory_is_one_file_or_shards_with_or_without_an_index(directory):
    arrays = some_arrays()
    assert_holds(directory, arrays)
    (directory / INDEX).unlink()
    assert_holds(directory, arrays)
    single = directory / "single"
    single.mkdir()
    safetensors.numpy.save_file(arrays, single / SINGLE)
    assert_holds(single, arrays)
    assert_holds(single / SINGLE, arrays)


def test_one_whole_file_is_preferred_to_an_index_as_transformers_does(directory):
    arrays = {"other": random_array((2,), np.float32)}
    safetensors.numpy.save_file(arrays, directory / SINGLE)
    assert_holds(directory, arrays)


def test_files_that_the_index_does_not_name_are_not_read(directory):
    (directory / "consolidated.safetensors").write_bytes(b"no header")
    assert_holds(directory, some_arrays())


def test_written_files_equal_the_librarys_byte_for_byte(tmp_path):
    arrays = {
        f"tensor é {kind}": random_array((3, 2), dtype)
        for kind, dtype in reversed(DTYPES.items())
        if kind != "C64"  # the library's numpy side does not write it
    }
    arrays |= some_arrays()
    safetensors.numpy.save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path, specs_of(arrays), arrays.values())
    assert [path.name for path in tmp_path.iterdir()].count(INDEX) == 0
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.oracle
def test_torch_reads_every_written_dtype_bit_for_bit(tmp_path):
    import safetensors.torch
    import torch

    pairs = {
        np.dtype(np.float32): torch.float32,
        np.dtype(np.float16): torch.float16,
        BFLOAT16: torch.bfloat16,
        FLOAT8: torch.float8_e4m3fn,
        np.dtype(np.int64): torch.int64,
    }
    arrays = {str(d): random_array((5, 3), d, i) for i, d in enumerate(pairs)}
    write_safetensors(tmp_path, specs_of(arrays), arrays.values())
    tensors = safetensors.torch.load_file(tmp_path / SINGLE)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].dtype == pairs[array.dtype]
        assert tensors[name].view(torch.uint8).numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("max_bytes", [96, 100, 104, 140, 10_000])
def test_shards_and_index_are_those_of_huggingface_hub(tmp_path, max_bytes):
    arrays = some_arrays()
    write_safetensors(tmp_path, specs_of(arrays), iter(arrays.values()), max_bytes)
    expected = huggingface_hub.split_state_dict_into_shards_factory(
        arrays,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_bytes,
    )
    files = set(expected.filename_to_tensors) | ({INDEX} if expected.is_sharded else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    for file, names in expected.filename_to_tensors.items():
        with safetensors.safe_open(tmp_path / file, framework="np") as held:
            assert held.metadata() == {"format": "pt"}
            assert set(held.keys()) == set(names)
            for name in names:
                assert_same(held.get_tensor(name), arrays[name])
    if expected.is_sharded:
        index = json.loads((tmp_path / INDEX).read_bytes())
        assert index["weight_map"] == expected.tensor_to_filename
        assert index["metadata"]["total_size"] == expected.metadata["total_size"]
    assert_holds(tmp_path, arrays)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    arrays = some_arrays()
    write_safetensors(tmp_path, specs_of(arrays), arrays.values(), max_shard_bytes=40)
    shards = json.loads((tmp_path / INDEX).read_bytes())["weight_map"]
    together = {"model.scalar", "model.empty", "model.a"}
    expected = {name: 2 if name in together else 1 if name == "model.b" else 3 for name in arrays}
    assert shards == {name: f"model-0000{n}-of-00003.safetensors" for name, n in expected.items()}
    assert_holds(tmp_path, arrays)


@pytest.mark.parametrize("transposed", [False, True])
def test_writing_holds_one_value_at_a_time(tmp_path, transposed):
    shape = (2048, 4096)  # 32 MiB; a transposed one is copied in pieces of 64 MiB at most
    specs = [TensorSpec(f"x{i}", shape, np.dtype(np.float32)) for i in range(6)]

    def values():
        for i in range(len(specs)):
            yield np.full(shape[::-1], i, np.float32).T if transposed else np.full(shape, i, "f4")

    tracemalloc.start()
    write_safetensors(tmp_path, specs, values(), max_shard_bytes=100 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (2.2 if transposed else 1.2) * 32 * MIB
    tensors = open_safetensors(tmp_path)
    assert [float(tensors[spec.name][-1, -1]) for spec in specs] == list(range(6))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values[:-1], "no value for tensor lm_head"),
        (lambda values: [*values, values[0]], "more values than the 5 specs"),
        (
            lambda values: [values[0].T, *values[1:]],
            r"model.b: expected bfloat16 of shape \(3, 5\)",
        ),
        (lambda values: [values[0].view(np.float16), *values[1:]], "found float16"),
    ],
)
def test_values_that_differ_from_their_specs_are_an_error(tmp_path, change, message):
    arrays = some_arrays()
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path, specs_of(arrays), change(list(arrays.values())))


def test_two_specs_of_one_name_are_an_error(tmp_path):
    spec = TensorSpec("x", (1,), np.dtype(np.float32))
    with pytest.raises(ValueError, match="same name"):
        write_safetensors(tmp_path, [spec, spec], [np.zeros(1, np.float32)] * 2)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def truncate(directory):
    os.truncate(directory / FIRST, (directory / FIRST).stat().st_size - 1)


def lengthen(directory):
    with open(directory / FIRST, "ab") as stream:
        stream.write(b"more")


def replace_header(old, new):
    def change(directory):
        data = (directory / FIRST).read_bytes()
        assert data.count(old) == 1 and len(old) == len(new)
        (directory / FIRST).write_bytes(data.replace(old, new))

    return change


def edit_weight_map(change):
    def damage(directory):
        index = json.loads((directory / INDEX).read_bytes())
        change(index["weight_map"])
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def copy_first(directory):
    shutil.copy(directory / FIRST, directory / "also.safetensors")
    (directory / INDEX).unlink()


def lose_first_of_unindexed(directory):
    (directory / FIRST).unlink()
    (directory / INDEX).unlink()


@pytest.mark.parametrize(
    "damage, fragments",
    [
        (truncate, [FIRST, "lists 58 bytes", "holds 57", "truncated"]),
        (lengthen, [FIRST, "lists 58 bytes", "holds 62"]),
        (lambda d: os.truncate(d / FIRST, 40), [FIRST, "file of 40", "truncated"]),
        (lambda d: os.truncate(d / FIRST, 3), [FIRST, "file of 3", "truncated"]),
        (
            lambda d: (d / FIRST).write_bytes(b"\xff" * 100),
            [FIRST, "expected a safetensors header"],
        ),
        (lambda d: (d / FIRST).write_bytes(b"\2" + b"\0" * 7 + b"[]"), [FIRST, "not that of"]),
        (lambda d: (d / FIRST).write_bytes(b"\2" + b"\0" * 7 + b"{:"), [FIRST, "not that of"]),
        (replace_header(b'"BF16"', b'"BF17"'), [FIRST, "model.b", "BF17", "expected BOOL, "]),
        (replace_header(b"[3,5]", b"[3,6]"), [FIRST, "model.b", "28 to 64", "found 28 to 58"]),
        (replace_header(b"[28,58]", b"[26,56]"), [FIRST, "model.b", "28 to 58", "found 26 to 56"]),
        (replace_header(b"[3,5]", b"[3,x]"), [FIRST, "not that of"]),
        (lambda d: (d / SECOND).unlink(), [INDEX, SECOND, "not there"]),
        (lose_first_of_unindexed, [SECOND, FIRST]),
        (
            edit_weight_map(lambda m: m.update({"model.c": FIRST})),
            [INDEX, "model.c", FIRST, "no file has it", "Did you mean model."],
        ),
        (
            edit_weight_map(lambda m: m.update({"lm_head": FIRST})),
            [INDEX, "lm_head", FIRST, f"it is in {SECOND}"],
        ),
        (lambda d: (d / INDEX).write_text("{}"), [INDEX, "weight_map"]),
        (lambda d: (d / INDEX).write_text("nothing"), [INDEX, "weight_map"]),
        (lambda d: (d / INDEX).write_text('{"weight_map": {"a": 1}}'), [INDEX, "not a string"]),
        (copy_first, ["model.", "also.safetensors", FIRST]),
    ],
)
def test_damage_is_one_error_that_names_file_tensor_expected_and_found(
    directory, damage, fragments
):
    damage(directory)
    with pytest.raises(UserError) as raised:
        open_safetensors(directory)
    assert [part for part in fragments if part not in str(raised.value)] == []
    assert str(directory) in str(raised.value)


def test_a_file_cut_after_it_was_opened_is_an_error_that_names_it(directory):
    tensor = open_safetensors(directory)["lm_head"]
    os.truncate(directory / SECOND, 100)
    with pytest.raises(UserError, match=f"{SECOND}.*truncated"):
        tensor[...]


def test_without_safetensors_the_error_lists_what_is_there_and_how_to_convert_it(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="found config.json") as raised:
        open_safetensors(tmp_path)
    assert "pytorch_model" not in str(raised.value)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="found config.json, pytorch_model.bin.*save_pretrained"):
        open_safetensors(tmp_path)
    with pytest.raises(UserError, match="no checkpoint .*modle. Did you mean .*model?"):
        (tmp_path / "model").mkdir()
        open_safetensors(tmp_path / "modle")


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("a.qweight", np.int32),
        ("a.qzeros", np.int32),
        ("a.weight", np.int8),
        ("a.weight_packed", np.int32),
        ("a.weight_scale", np.float32),
        ("a.SCB", np.float32),
    ],
)
def test_other_quantisations_are_refused_by_name(tmp_path, name, dtype):
    safetensors.numpy.save_file({name: random_array((4, 4), dtype)}, tmp_path / SINGLE)
    with pytest.raises(UserError, match=f"{SINGLE}: tensor {name} .*quantisation.*expected"):
        open_safetensors(tmp_path)
