"""What a step leaves to the next: finished groups, unfinished responses, a rollout drawn ahead.

All of it are `Rollout`s on the host whose `staleness` counts, token by token, the RL steps since
the weights that drew it; the behaviour log-probabilities are those of these weights, so the ratio
of the objective is right whatever the age. A checkpoint holds them (`Carry.saved`) with the places
of their prompts in the data.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mmrl.data import Status
from mmrl.rollout import Rollout
from mmrl.sharding import MeshConfig

BY_TOKEN = {"tokens": 0, "mask": 0, "behaviour_logprobs": 0, "support": -1, "staleness": 0}


@dataclass(frozen=True)
class OffPolicyConfig:
    """How far a rollout may lie behind the weights that it trains.

    max_staleness   RL steps, each of `updates_per_rollout` optimizer steps, between the weights
                    that drew a token and those that train on it. With 0 nothing is carried over;
                    above, informative groups that a step had no room for wait for the next ones
    partial_tokens  tokens of a response that a step draws: unfinished ones are continued by the
                    next weights, and to their end when they are `max_staleness` old. None is all
    overlap         draw and judge the next step's rollout with the weights before the update,
                    while the update runs: one-step off-policy, for a copy of the weights
    rollout_mesh    what is drawn ahead is drawn there: the last devices, as many as its sizes say,
                    which the mesh of the run then leaves out. None is the run's own mesh, whose
                    devices run one program after the other
    """

    max_staleness: int = 0
    partial_tokens: int | None = None
    overlap: bool = False
    rollout_mesh: MeshConfig | None = None

    def __post_init__(self):
        least = int(self.overlap) + (self.partial_tokens is not None)
        if self.max_staleness < least:
            raise ValueError(
                f"off_policy: overlap and partial_tokens make tokens {least} steps old: set "
                f"max_staleness to {least} or more"
            )
        if self.partial_tokens is not None and self.partial_tokens < 1:
            raise ValueError("off_policy: partial_tokens must be at least 1")
        if self.rollout_mesh is not None and not self.overlap:
            raise ValueError("off_policy: a rollout_mesh needs overlap=True")
        if self.rollout_mesh is not None and -1 in dataclasses.astuple(self.rollout_mesh):
            raise ValueError("off_policy: all sizes of rollout_mesh must be given, data too")

    @property
    def carries(self) -> bool:
        return self.max_staleness > 0

    @property
    def most_carried(self) -> int:
        """Steps that a group may wait; one drawn ahead ages by one more before it trains."""
        return self.max_staleness - self.overlap


@dataclass
class Carry:
    """Judged `kept` groups, `unfinished` ones, and the next step's rollout with its metrics.

    Their staleness counts up to the weights that `version` RL steps have made.
    """

    version: int = 0
    kept: Rollout | None = None
    unfinished: Rollout | None = None
    ahead: tuple[Rollout, dict[str, Any]] | None = None

    def age(self, version: int, most: int, length: int) -> int:
        """Up to later weights, `length` the limit of responses; drops kept groups above `most`.

        Returns how many.
        """
        steps, self.version = version - self.version, version
        self.unfinished = self.unfinished and aged(padded(self.unfinished, length), steps)
        if self.kept is None:
            return 0
        kept = aged(padded(self.kept, length), steps)
        young = ages(kept) <= most
        self.kept = take(kept, np.flatnonzero(young))
        return int((~young).sum())

    def take_ahead(self, version: int, length: int) -> tuple[Rollout, dict[str, Any]] | None:
        """The rollout drawn ahead, as old as it is for these weights; None if there is none."""
        if self.ahead is None:
            return None
        (rollout, metrics), self.ahead = self.ahead, None
        return aged(padded(rollout, length), version - self.version), metrics

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arrays, JSON) of what is carried, for `restored`."""
        arrays: dict[str, Any] = {}
        host: dict[str, Any] = {"version": self.version}
        rollouts = {"kept": self.kept, "unfinished": self.unfinished}
        if self.ahead is not None:
            rollouts["ahead"], host["metrics"] = self.ahead
        for name, rollout in rollouts.items():
            if rollout is not None:
                arrays[name] = {
                    field: np.asarray(x)
                    for field, x in vars(rollout).items()
                    if field != "metadata" and x is not None
                }
                host[name] = [place_of(group) for group in rollout.metadata]
        return arrays, host


def place_of(group: Any) -> Any:
    """Where the data has the prompt of a group: an example, or the samples of one."""
    return (group[0] if isinstance(group, list) else group).metadata["place"]


def restored(arrays: dict[str, Any], metadata: tuple[Any, ...]) -> Rollout:
    """A rollout of `Carry.saved`; `metadata` are the examples at its places."""
    names = {field.name for field in dataclasses.fields(Rollout)} - {"metadata"}
    given: dict[str, Any] = dict.fromkeys(names)
    given |= {name: np.asarray(x) for name, x in arrays.items()}
    return Rollout(**given, metadata=metadata)


def on_host(rollout: Rollout, length: int) -> Rollout:
    """A fresh rollout as numpy arrays, with room for `length` tokens and with its staleness."""
    arrays = jax.tree.map(np.asarray, jax.device_get(rollout.arrays()))
    arrays = arrays.replace(metadata=rollout.metadata, staleness=np.zeros_like(arrays.tokens))
    return padded(arrays, length)


def padded(rollout: Rollout, length: int) -> Rollout:
    """The rollout with room for `length` tokens of each response, or as many as it has."""
    more = length - rollout.tokens.shape[2]
    if more <= 0:
        return rollout
    changes = {}
    for name, value in BY_TOKEN.items():
        x = getattr(rollout, name)
        if x is not None:
            widths = [(0, 0), (0, 0), (0, more)] + [(0, 0)] * (x.ndim - 3)
            changes[name] = np.pad(x, widths, constant_values=value)
    return rollout.replace(**changes)


def aged(rollout: Rollout, steps: int) -> Rollout:
    assert rollout.staleness is not None
    return rollout.replace(staleness=rollout.staleness + steps)


def ages(rollout: Rollout) -> np.ndarray:
    """[P], the staleness of each group's oldest token."""
    drawn = np.arange(rollout.tokens.shape[2]) < np.asarray(rollout.lengths)[..., None]
    return np.where(drawn, np.asarray(rollout.staleness), 0).max(axis=(1, 2))


def take(rollout: Rollout, rows: np.ndarray) -> Rollout | None:
    """These groups of a rollout on the host; None for none."""
    if not len(rows):
        return None
    taken = jax.tree.map(lambda x: x[rows], rollout.arrays())
    return taken.replace(metadata=tuple(rollout.metadata[i] for i in rows))


def join(rollouts: Sequence[Rollout | None]) -> Rollout | None:
    """All groups of rollouts on the host, in order; None for none."""
    parts = [rollout for rollout in rollouts if rollout is not None]
    if not parts:
        return None
    whole = jax.tree.map(lambda *x: np.concatenate(x), *(part.arrays() for part in parts))
    return whole.replace(metadata=tuple(group for part in parts for group in part.metadata))


def split_finished(rollout: Rollout | None) -> tuple[Rollout | None, Rollout | None]:
    """The groups all of whose responses have ended, and the others."""
    if rollout is None:
        return None, None
    pending = (rollout.status == int(Status.PENDING)).any(axis=1)
    return take(rollout, np.flatnonzero(~pending)), take(rollout, np.flatnonzero(pending))


def select(
    parts: Sequence[Rollout], chosen: Sequence[np.ndarray], groups: int
) -> tuple[Rollout, Rollout | None]:
    """The batch of `groups`, chosen ones and the earlier preferred, and the chosen left over.

    In the batch the freshest stand first, so that a step's first update compares them with the
    weights that drew them.
    """
    whole = join(parts)
    assert whole is not None
    worth = np.concatenate(chosen)
    order = np.argsort(~worth, kind="stable")
    batch, left = order[:groups], order[groups:]
    used = take(whole, batch[np.argsort(ages(whole)[batch], kind="stable")])
    assert used is not None
    return used, take(whole, left[worth[left]])


def staleness_metrics(rollout: Rollout) -> dict[str, float]:
    """`rollout/staleness_mean` and `_max`, in RL steps, over the tokens that train."""
    stale = np.asarray(rollout.staleness)[np.asarray(rollout.mask) > 0]
    if not stale.size:
        return {"rollout/staleness_mean": 0.0, "rollout/staleness_max": 0}
    return {
        "rollout/staleness_mean": float(stale.mean()),
        "rollout/staleness_max": int(stale.max()),
    }


def is_fresh(rollout: Rollout, updates: int) -> bool:
    """Whether a token of the first of so many updates is of the weights that it trains."""
    first = slice(0, rollout.tokens.shape[0] // updates)
    fresh = np.asarray(rollout.staleness)[first] == 0
    return bool((fresh & (np.asarray(rollout.mask)[first] > 0)).any())
