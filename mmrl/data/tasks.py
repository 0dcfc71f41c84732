"""Procedurally generated tasks with verifiers, from reasoning-gym (arXiv 2505.24760)."""

import dataclasses
import hashlib
import random
from collections.abc import Mapping
from typing import Any, SupportsIndex

from mmrl.data.records import Example
from mmrl.errors import UserError, nearest

DEFAULT_ENTRIES = 1_000_000


def is_held_out(question: str, held_out_every: int) -> bool:
    """Whether `question` belongs to the held-out split: hash(question) ≡ 0 mod `held_out_every`.

    A property of the text alone, so training and held-out questions are disjoint whatever the
    seeds, sizes and configurations of the two sources.
    """
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % held_out_every == 0


def create_dataset(name: str, settings: Mapping[str, Any]) -> Any:
    """The reasoning-gym dataset `name` with `settings` of its own.

    Raises `UserError` for an unknown name or setting (naming the nearest one) or a refused value.
    """
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise UserError("reasoning_gym tasks need the package: pip install mmrl[tasks]") from error
    if name not in factory.DATASETS:
        raise UserError(f"reasoning_gym has no dataset {name!r}.{nearest(name, factory.DATASETS)}")
    valid = {field.name for field in dataclasses.fields(factory.DATASETS[name][1])}
    for key in settings:
        if key not in valid:
            hint = nearest(key, valid | {"weight"})
            raise UserError(f"dataset {name} has no setting {key!r}.{hint}")
    try:
        return _with_ordered_sets(factory.create_dataset(name, **settings))
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"dataset {name} refuses {dict(settings)}: {error}") from error


class _OrderedSet(set):
    """A set whose order does not depend on the process's hash seed."""

    def __iter__(self):
        return iter(sorted(super().__iter__()))

    def __sub__(self, other):
        return _OrderedSet(super().__sub__(other))


def _with_ordered_sets(dataset: Any) -> Any:
    """The dataset, with sets of strings that it draws from in a fixed order.

    isomorphic_strings and ransom_note draw from `list(set)`, so that entry i would be another in
    each process, and a continued run not the same run.
    """
    for name, value in vars(dataset).items():
        if type(value) is set and all(isinstance(element, str) for element in value):
            setattr(dataset, name, _OrderedSet(value))
    return dataset


class ReasoningGymSource:
    """Random-access source of `size` examples; example i is a function of (seed, i) alone.

    Args:
      datasets: {name: settings}. Settings are the dataset's own, and `weight` (default 1), its
        share of the examples. `size` is the number of distinct entries behind a dataset, default
        1,000,000; lower it for the few that build all entries at the start (acre).
      held_out: True gives the held-out split, False the training split (see `is_held_out`).

    An example's metadata holds what `mmrl.rewards.reasoning_gym` needs: dataset, settings, entry.
    Raises `UserError` for what `create_dataset` refuses, for weights that are not positive, and
    when a split has no questions because the task has too few.
    """

    def __init__(
        self,
        datasets: Mapping[str, Mapping[str, Any]],
        *,
        seed: int,
        size: int,
        held_out: bool = False,
        held_out_every: int = 16,
    ):
        if not datasets:
            raise UserError("datasets is empty: name at least one, such as {'chain_sum': {}}")
        self._names = list(datasets)
        self._settings, self._weights = {}, []
        for name, settings in datasets.items():
            weight = settings.get("weight", 1.0)
            if not weight > 0:
                raise UserError(f"dataset {name}: weight must be positive, got {weight}")
            self._weights.append(weight)
            own = {key: value for key, value in settings.items() if key != "weight"}
            self._settings[name] = {"seed": seed, "size": DEFAULT_ENTRIES} | own
        self._datasets = {name: create_dataset(name, self._settings[name]) for name in datasets}
        self._seed, self._size = seed, size
        self._held_out, self._held_out_every = held_out, held_out_every

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: SupportsIndex) -> Example:
        rng = random.Random(f"{self._seed}:{index.__index__()}")
        name = rng.choices(self._names, self._weights)[0]
        dataset, entries = self._datasets[name], self._settings[name]["size"]
        # A split with one question in K is missed by 64 K draws with probability e^-64.
        for _ in range(64 * self._held_out_every):
            entry = dataset[rng.randrange(entries)]
            if is_held_out(entry["question"], self._held_out_every) == self._held_out:
                metadata = {
                    "dataset": name,
                    "settings": self._settings[name],
                    "entry": entry,
                }
                return Example(entry["question"], entry["answer"], metadata)
        split = "held-out" if self._held_out else "training"
        raise UserError(
            f"dataset {name} with {self._settings[name]} has too few questions for a {split} "
            f"split of one in {self._held_out_every}: widen its settings or change held_out_every"
        )
