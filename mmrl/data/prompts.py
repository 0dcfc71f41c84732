"""The prompts of RL steps: from one source or several, without those that the curriculum leaves."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np

from mmrl.data.curriculum import CurriculumConfig, DataPart, PassRates, prompt_id
from mmrl.data.pipeline import DataConfig, example_batches
from mmrl.data.records import Example
from mmrl.errors import UserError

NONE = CurriculumConfig()
MOST_PASSED_OVER = 10_000  # in a row, after which nothing is left to learn


class ExampleStream:
    """One example after the other of an iterator of batches; its state names the next one."""

    def __init__(self, batches: grain.DatasetIterator):
        self._batches = batches
        self._before: Any = batches.get_state()
        self._batch: list[Example] = []
        self._used = 0

    def __next__(self) -> Example:
        if self._used == len(self._batch):
            self._before = self._batches.get_state()
            self._batch, self._used = next(self._batches), 0
        self._used += 1
        return self._batch[self._used - 1]

    def get_state(self) -> dict[str, Any]:
        if self._used == len(self._batch):
            return {"batch": self._batches.get_state(), "used": 0}
        return {"batch": self._before, "used": self._used}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state["batch"])
        self._before, self._batch, self._used = state["batch"], [], 0
        if state["used"]:
            self._batch, self._used = next(self._batches), state["used"]


class PromptStream:
    """Draws `prompts` examples a time over all processes, of which this one gets its part.

    With a curriculum an example's metadata say its "prompt_id". With `parts` its source is drawn by
    the weights of the step, the same on all processes, and metadata say its "part", 0 for `data`.
    With `places` metadata say its "place" in the data, which `at` finds again.
    """

    def __init__(
        self,
        data: DataConfig,
        parts: Sequence[DataPart] = (),
        curriculum: CurriculumConfig = NONE,
        *,
        prompts: int,
        places: bool = False,
        process_index: int = 0,
        process_count: int = 1,
    ):
        processes = dict(process_index=process_index, process_count=process_count)
        self._streams = [
            ExampleStream(example_batches(source, batch_size=prompts, **processes))
            for source in (data, *(part.data for part in parts))
        ]
        self._parts, self._prompts, self._places = parts, prompts, places
        self._seed = data.seed
        size = prompts // process_count
        self._own = slice(process_index * size, (process_index + 1) * size)
        self.pass_rates = PassRates(curriculum)
        self._draws = 0  # of batches
        self._examples = 0

    def draw(self, step: int) -> list[Example]:
        """The next examples, as many as are this process's.

        Raises UserError where the curriculum passes over everything.
        """
        sources = self._sources(step)[self._own]
        self._draws += 1
        return [self._next(int(source)) for source in sources]

    def _sources(self, step: int) -> np.ndarray:
        if not self._parts:
            return np.zeros(self._prompts, int)
        weights = np.asarray([1.0, *(part.weight_at(step) for part in self._parts)])
        rng = np.random.default_rng([self._seed, self._draws])
        return rng.choice(len(weights), size=self._prompts, p=weights / weights.sum())

    def _next(self, source: int) -> Example:
        stream, measures = self._streams[source], self.pass_rates.config.measures
        for _ in range(MOST_PASSED_OVER):
            place = [source, stream.get_state()] if self._places else None
            example = self._noted(next(stream), source, place)
            self._examples += 1
            if not measures or self.pass_rates.admits(
                example.metadata["prompt_id"], self._examples
            ):
                return example
        raise UserError(
            f"the curriculum passed over {MOST_PASSED_OVER} prompts in a row: all that are left "
            "are solved or hopeless; widen curriculum.low and curriculum.high, or give more data"
        )

    def at(self, places: Iterable[list[Any]]) -> list[Example]:
        """The examples drawn before at these places, without the stream moving on."""
        before = [stream.get_state() for stream in self._streams]
        found = []
        for source, state in places:
            self._streams[source].set_state(state)
            found.append(self._noted(next(self._streams[source]), source, [source, state]))
        for stream, state in zip(self._streams, before, strict=True):
            stream.set_state(state)
        return found

    def _noted(self, example: Example, source: int, place: list[Any] | None) -> Example:
        notes: dict[str, Any] = {}
        if self._parts:
            notes["part"] = source
        if place is not None:
            notes["place"] = place
        if self.pass_rates.config.measures:
            notes["prompt_id"] = prompt_id(example)
        return dataclasses.replace(example, metadata=example.metadata | notes) if notes else example

    def metrics(self, step: int) -> dict[str, float]:
        """What the curriculum knows, and the `mixture/weight_I` of part I in this step."""
        metrics = self.pass_rates.metrics() if self.pass_rates.config.measures else {}
        weights = (part.weight_at(step) for part in self._parts)
        return metrics | {f"mixture/weight_{i}": weight for i, weight in enumerate(weights, 1)}

    def get_state(self) -> dict[str, Any]:
        return {
            "streams": [stream.get_state() for stream in self._streams],
            "draws": self._draws,
            "examples": self._examples,
            "pass_rates": self.pass_rates.state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved)
        self._draws, self._examples = state["draws"], state["examples"]
        self.pass_rates.counts = dict(state["pass_rates"])
