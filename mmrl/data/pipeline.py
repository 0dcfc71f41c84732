"""Batches of examples for rollouts and of token rows for the supervised phases.

Iterators are grain's: `get_state()` is a small JSON value, `set_state()` resumes at the next batch.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grain
import numpy as np
from grain.experimental import ConcatThenSplitIterDataset, FirstFitPackIterDataset

from mmrl.data.bfcl import bfcl_examples
from mmrl.data.files import read_examples
from mmrl.data.records import Example, prompt_tokens
from mmrl.data.tasks import ReasoningGymSource
from mmrl.errors import UserError
from mmrl.text import Tokenizer


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and in which order.

    source          "reasoning_gym", "bfcl", a .jsonl or .parquet path with an optional `@[a:b]`, or
                    the import path `module:function` of one that makes a sequence of `Example`s
                    of this config, split and all
    datasets        reasoning_gym: {name: settings and weight}, see `ReasoningGymSource`
                    bfcl: {category: settings}, see `bfcl_examples`
    size            reasoning_gym: examples in an epoch
    split           not of files: "train" or "held_out", disjoint by a hash of the question or id
    held_out_every  not of files: one question or id in this many is held out
    *_key           files: names of the fields, see `read_examples`
    prompt_suffix   appended to text prompts; where answers begin, when the question does not say
    chat            text prompts become a user's message, for the tokenizer's chat template
    system_prompt   a system message before it; None leaves that to the template
    shuffle, seed   a new order each epoch; the seed also fixes what reasoning_gym generates
    """

    source: str = "reasoning_gym"
    datasets: dict[str, dict[str, Any]] = field(default_factory=lambda: {"chain_sum": {}})
    size: int = 1_000_000
    split: Literal["train", "held_out"] = "train"
    held_out_every: int = 16
    input_key: str = "input"
    label_key: str | None = None
    metadata_key: str = "metadata"
    tool_key: str = "tools"
    prompt_suffix: str = ""
    chat: bool = False
    system_prompt: str | None = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.size < 2**32:
            raise UserError(f"size must be from 1 to 2^32 - 1, got {self.size}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        if self.held_out_every < 2:
            raise UserError(f"held_out_every must be at least 2, got {self.held_out_every}")
        if self.split not in ("train", "held_out"):
            raise UserError(f"split must be 'train' or 'held_out', got {self.split!r}")
        if self.system_prompt is not None and not self.chat:
            raise UserError("system_prompt is for chat prompts: set chat=True")
        if not self.has_held_out and self.split == "held_out":
            raise UserError(
                f"files have no held_out split; for {self.source} name another file or hold rows "
                "out with a slice, path@[a:b]"
            )

    @property
    def has_held_out(self) -> bool:
        """Whether the source has a held-out split of its own."""
        return self.source in ("reasoning_gym", "bfcl") or self.is_function

    @property
    def is_function(self) -> bool:
        """Whether the source is an import path."""
        return re.fullmatch(r"\w+(\.\w+)*:\w+", self.source) is not None


def examples(config: DataConfig) -> grain.MapDataset:
    """One epoch of `Example`s in the order of the source: `dataset[i]` and `len(dataset)`."""
    if config.source == "reasoning_gym":
        source: Any = ReasoningGymSource(
            config.datasets,
            seed=config.seed,
            size=config.size,
            held_out=config.split == "held_out",
            held_out_every=config.held_out_every,
        )
    elif config.source == "bfcl":
        source = bfcl_examples(
            config.datasets,
            held_out=config.split == "held_out",
            held_out_every=config.held_out_every,
        )
    elif config.is_function:
        from mmrl.rewards.runner import resolve  # which needs this package's records

        source = resolve(config.source, "data.source")(config)
    else:
        source = read_examples(
            config.source,
            input_key=config.input_key,
            label_key=config.label_key,
            metadata_key=config.metadata_key,
            tool_key=config.tool_key,
        )

    return grain.MapDataset.source(source).map(lambda example: _with_prompt(example, config))


def example_batches(
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless iterator of lists of `Example`s, `batch_size` over all processes.

    Epoch follows epoch without a gap, each in an order of its own. Each process has consecutive
    examples of every batch, so batch k is the same for every number of processes, one process's
    part after another's, and so is the state. Raises `UserError` if `batch_size` cannot be shared
    equally.
    """
    stream = _stream([(config, 1.0)], batch_size, process_index, process_count)
    local = batch_size // process_count
    # Without drop_remainder grain rounds the length of the endless stream up, beyond an int.
    return iter(_iterate(stream.batch(local, drop_remainder=True, batch_fn=list)))


Sources = Sequence[tuple[DataConfig, float]]


def supervised_batches(
    data: DataConfig | Sources,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    length: int,
    pack: bool = False,
    prepare: Callable[[int, Example], Example] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless iterator of prompt + label + end rows for next-token training.

    The end is the tokenizer's end of a text, or of a turn where the prompt is chat messages. A
    label that is a list of texts is an episode: what the model says, what comes back, and so on;
    its own turns alone are targets.

    Takes the examples of `example_batches` in the same order, or those of several sources mixed by
    their weights, one a row, or with `pack` as many as fit, first fit. Shapes never change;
    B = `batch_size` / `process_count`, T = `length`:
        tokens       [B, T] int32, padded on the right with `tokenizer.pad_id`
        mask         [B, T] float32, 1 where the token is a target: the label and the end token
        segment_ids  [B, T] int32, 1, 2, … for the examples of a row, 0 for padding
        positions    [B, T] int32, from 0 in each example

    `prepare` changes an example before it is tokenized, knowing its number in the stream of all
    processes.

    Packed rows and the state hold other examples for another number of processes: each packs what
    is its own.

    mask[b, t] belongs to tokens[b, t], which the logits at t - 1 predict; the first token of an
    example is never a target. Raises `UserError` for an example that is longer than `length` (none
    is cut or dropped), has no label to learn, or an empty prompt.
    """
    stream = _stream(_sources(data), batch_size, process_index, process_count, prepare)
    rows = FirstFitPackIterDataset(
        _iterate(stream.map(lambda example: _token_row(example, tokenizer, length))),
        length_struct={"tokens": length, "mask": length},
        padding_struct={"tokens": tokenizer.pad_id, "mask": 0},
        num_packing_bins=batch_size // process_count,
        shuffle_bins=False,
        max_sequences_per_bin=None if pack else 1,
    )
    return iter(rows.map(_rename).batch(batch_size // process_count))


def document_batches(
    data: DataConfig | Sources,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    length: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless iterator of rows of whole texts, each with its end, for continual pretraining.

    Arrays as in `supervised_batches`. Texts stand one after another in rows that are full: where a
    row ends a text is cut and goes on in the next row, there without what came before. Every token
    is a target but the first of a text. Raises `UserError` for a prompt that is no text.
    """
    stream = _stream(_sources(data), batch_size, process_index, process_count)
    rows = ConcatThenSplitIterDataset(
        _iterate(stream.map(lambda example: _document(example, tokenizer))),
        length_struct={"tokens": length, "mask": length},
    )
    return iter(rows.map(_rename).batch(batch_size // process_count))


def _sources(data: DataConfig | Sources) -> Sources:
    return [(data, 1.0)] if isinstance(data, DataConfig) else data


def _document(example: Example, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    if not isinstance(example.prompt, str):
        raise UserError(f"pretraining needs texts, got the messages {example.prompt!r}")
    tokens = [*tokenizer.encode(example.prompt), tokenizer.eos_id]
    mask = [0.0] + [1.0] * (len(tokens) - 1)
    return {"tokens": np.asarray(tokens, np.int32), "mask": np.asarray(mask, np.float32)}


def _with_prompt(example: Example, config: DataConfig) -> Example:
    """`example` with its text suffixed and as chat messages, as `config` says; messages stay."""
    if not isinstance(example.prompt, str):
        return example
    text = example.prompt + config.prompt_suffix
    if not config.chat:
        return dataclasses.replace(example, prompt=text)
    system = [{"role": "system", "content": config.system_prompt}]
    user = [{"role": "user", "content": text}]
    chat = user if config.system_prompt is None else system + user
    return dataclasses.replace(example, prompt=chat)


def _stream(
    sources: Sources,
    batch_size: int,
    process_index: int,
    process_count: int,
    prepare: Callable[[int, Example], Example] | None = None,
) -> grain.MapDataset:
    """Endless examples of one process: its part of batch 0, of batch 1, …"""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} must be a positive multiple of {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index must be from 0 to {process_count - 1}, got {process_index}")
    streams = [_endless(config) for config, _ in sources]
    stream = streams[0]
    if len(streams) > 1:
        stream = grain.MapDataset.mix(streams, weights=[weight for _, weight in sources])
    if prepare is not None:
        stream = stream.map_with_index(prepare)
    if process_count == 1:
        return stream
    size = batch_size // process_count
    return grain.MapDataset.source(_Share(stream, size, process_index * size, batch_size))


def _endless(config: DataConfig) -> grain.MapDataset:
    """Epoch after epoch of a source, each in an order of its own."""
    epoch = examples(config)
    return (epoch.shuffle(seed=config.seed) if config.shuffle else epoch).repeat()


@dataclass(frozen=True)
class _Share:
    """Of every `period` items of an endless dataset, the `size` items from `start` on."""

    stream: grain.MapDataset
    size: int
    start: int
    period: int

    def __len__(self) -> int:
        return len(self.stream) // self.period * self.size

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(index, self.size)
        return self.stream[batch * self.period + self.start + row]


def _iterate(dataset: grain.MapDataset) -> grain.IterDataset:
    # Examples are generated or in memory: reading threads would only contend for the interpreter.
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def _token_row(example: Example, tokenizer: Tokenizer, length: int) -> dict[str, np.ndarray]:
    prompt = prompt_tokens(example, tokenizer)
    if not prompt:
        raise UserError(f"supervised training needs a prompt, got {example.prompt!r}")
    target, mask = _targets(example, tokenizer)
    if len(prompt) + len(target) > length:
        raise UserError(
            f"an example has {len(prompt)} prompt and {len(target)} target tokens, more than "
            f"{length}: raise the length or leave it out. It is {example.prompt!r}"
        )
    return {
        "tokens": np.asarray(prompt + target, np.int32),
        "mask": np.asarray([0] * len(prompt) + mask, np.float32),
    }


def _targets(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens after the prompt, and 1 where the model says them."""
    label, text = example.label, isinstance(example.prompt, str)
    episode = isinstance(label, list) and text and len(label) % 2 == 1
    parts = label if episode else [label]
    if not all(isinstance(x, str | int | float) and not isinstance(x, bool) for x in parts):
        raise UserError(
            f"supervised training needs a text label, got {label!r} for {example.prompt!r}: set "
            "label_key, or leave this dataset out of the warm start. An episode's label is a list "
            "of texts by turns, the model's first and last, after a prompt of text"
        )
    tokens: list[int] = []
    mask: list[int] = []
    for turn, part in enumerate(parts):
        said = turn % 2 == 0
        new = tokenizer.encode(str(part))
        if said:
            new.append(tokenizer.eos_id if text else tokenizer.turn_end_id)
        tokens += new
        mask += [int(said)] * len(new)
    return tokens, mask


def _rename(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens": packed["tokens"],
        "mask": packed["mask"],
        "segment_ids": packed["tokens_segment_ids"],
        "positions": packed["tokens_positions"],
    }
