"""The pool of a step's groups, by a sampler of known tokens: none is lost, none trains too old."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data import Example, Status
from mmrl.data.curriculum import CurriculumConfig, PassRates
from mmrl.rollout import Rollout, partial
from mmrl.training.config import TrainConfig
from mmrl.training.off_policy import Carry, OffPolicyConfig, ages
from mmrl.training.pool import Pool

GROUP, LIMIT, PIECE, PROMPTS = 2, 9, 3, 4


def known_response(prompt: int, member: int) -> list[int]:
    """1 to 12 tokens that tell prompt, member and place; what exceeds the limit is cut."""
    length = 1 + (7 * prompt + 5 * member) % 12
    return [1_000_000 * member + 100 * prompt + place for place in range(length)]


def pieces(rows: list[list[tuple[int, int, int, int]]], width: int, **prompts) -> Rollout:
    """A rollout [P, G] of pieces (prompt, member, first token, most tokens) of known responses."""
    shape = (len(rows), len(rows[0]))
    tokens, lengths = np.zeros((*shape, width), np.int32), np.zeros(shape, np.int32)
    status = np.full(shape, int(Status.TRUNCATED), np.int32)
    for index in np.ndindex(shape):
        prompt, member, first, most = rows[index[0]][index[1]]
        whole = known_response(prompt, member)
        found = whole[first : first + most]
        tokens[index][: len(found)], lengths[index] = found, len(found)
        if first + len(found) == len(whole):
            status[index] = int(Status.COMPLETED)
    mask = (np.arange(width) < lengths[..., None]).astype(np.float32)
    zeros = np.zeros(shape, np.float32)
    return Rollout(
        tokens=tokens,
        lengths=lengths,
        mask=mask,
        behaviour_logprobs=-mask,
        support=None,
        status=status,
        reward=zeros,
        advantages=zeros,
        **prompts,
    )


def fresh(first: int, most: int) -> Rollout:
    """A round of new prompts, each one token: its number."""
    numbers = np.arange(first, first + PROMPTS)
    examples = tuple(Example("p", label=int(n), metadata={"place": [0, int(n)]}) for n in numbers)
    prompts = dict(prompt_tokens=numbers[:, None], prompt_lengths=np.ones(PROMPTS, np.int32))
    rows = [[(int(n), g, 0, most) for g in range(GROUP)] for n in numbers]
    return pieces(rows, most, **prompts).replace(metadata=examples)


def go_on(fraction, model, prompts, sampling, rng, *, max_new_tokens, **_) -> Rollout:
    """In place of `generate_within`: the known tokens that follow what the rows hold."""
    tokens, lengths = prompts
    rows = []
    for row, n, most in zip(tokens, lengths, max_new_tokens, strict=True):
        held = row[1:n].tolist()
        number, member = int(row[0]), (held[0] // 1_000_000 if held else 0)
        assert held == known_response(number, member)[: n - 1]
        rows.append([(number, member, int(n) - 1, int(most[0]))])
    return pieces(rows, sampling.max_new_tokens, prompt_tokens=tokens, prompt_lengths=lengths)


def reward(sample) -> float:
    """Differs within a group but for every fifth prompt."""
    member = sample.tokens[1] // 1_000_000
    return 1.0 if sample.label % 5 == 0 else float(member)


@pytest.fixture
def config() -> TrainConfig:
    base: TrainConfig = configs.load(Path(__file__).parents[1] / "configs" / "copy_letter.py")
    sampling = replace(base.sampling, group_size=GROUP, max_new_tokens=LIMIT)
    return replace(base, sampling=sampling, prompts_per_step=PROMPTS, dynamic_sampling_rounds=3)


@pytest.mark.parametrize(
    "off_policy",
    [
        OffPolicyConfig(max_staleness=2),
        OffPolicyConfig(max_staleness=1, partial_tokens=PIECE),
        OffPolicyConfig(max_staleness=3, partial_tokens=PIECE),
    ],
)
def test_every_batch_is_full_of_whole_responses_no_older_than_the_bound(
    off_policy, config, monkeypatch
):
    monkeypatch.setattr(partial, "generate_within", go_on)
    monkeypatch.setattr(type(config.tokenizer), "decode", lambda self, tokens: "")
    config = replace(config, off_policy=off_policy)
    run = SimpleNamespace(
        config=config,
        carry=Carry(),
        reward=reward,
        keep=None,
        key=lambda step: jax.random.fold_in(jax.random.key(0), step),
        prompts=SimpleNamespace(pass_rates=PassRates(CurriculumConfig()), metrics=lambda step: {}),
    )
    drawn_at: dict[int, int] = {}
    trained: list[int] = []
    informative: list[bool] = []
    most = LIMIT if off_policy.partial_tokens is None else PIECE
    oldest = expired = 0
    for step in range(1, 21):
        pool = Pool(run, step, version=step - 1)
        pool.take_up_earlier(None)
        while pool.lacks:
            first = len(drawn_at)
            drawn_at |= dict.fromkeys(range(first, first + PROMPTS), step - 1)
            pool.add(fresh(first, most), {})
        pool.fill(None)
        batch, metrics = pool.batch()
        numbers = batch.prompt_tokens[:, 0].tolist()
        assert len(numbers) == PROMPTS
        for (p, g), length in np.ndenumerate(batch.lengths):
            whole = known_response(numbers[p], g)
            assert batch.tokens[p, g, :length].tolist() == whole[:LIMIT]
            ended = Status.COMPLETED if len(whole) <= LIMIT else Status.TRUNCATED
            assert batch.status[p, g] == ended
            age = batch.staleness[p, g, :length]
            assert age[0] == step - 1 - drawn_at[numbers[p]]  # since the first token was drawn
            assert (np.diff(age) <= 0).all()  # later tokens are of later weights
            assert age[-1] >= 0
        assert ages(batch).max() <= off_policy.max_staleness
        oldest = max(oldest, int(ages(batch).max()))
        trained += numbers
        informative += (batch.reward.std(axis=1) > 0).tolist()
        expired += metrics["rollout/expired"]
        waiting = [metrics["rollout/kept"], metrics["rollout/unfinished"]]
        assert waiting == [
            0 if left is None else len(left.lengths)
            for left in (run.carry.kept, run.carry.unfinished)
        ]
        assert run.carry.unfinished is None or off_policy.partial_tokens is not None
    assert len(set(trained)) == len(trained)
    assert oldest >= 1
    assert np.mean(informative) > 0.85  # 0.8 is the share among all that are drawn
    useful = [number for number in drawn_at if number % 5]
    left = sum(waiting)
    assert len(useful) <= sum(informative) + expired + left
