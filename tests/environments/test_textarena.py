"""Games of textarena as environments, compared with the package's own interface."""

import asyncio
import random

import pytest

textarena = pytest.importorskip("textarena")

from mmrl.data import DataConfig, examples  # noqa: E402
from mmrl.environments.textarena import TextArena  # noqa: E402
from mmrl.errors import UserError  # noqa: E402

SOURCE = "mmrl.environments.textarena:games"


def dataset(split="train", **datasets):
    return examples(DataConfig(source=SOURCE, datasets=datasets, size=10, split=split))


def play(example, moves, **settings):
    """(the prompt, the steps)."""

    async def episode():
        world = TextArena(example, **settings)
        start = await world.reset(example)
        steps = []
        for move in moves:
            random.random()  # others draw between the moves
            steps.append(await world.step(move))
            if steps[-1].done:
                break
        await world.close()
        return start.prompt, steps

    return asyncio.run(episode())


def reference(seed: int, moves):
    """The same game by textarena alone: the prompt, the hints, and the rewards at the end."""
    game = textarena.make("GuessTheNumber-v0-raw", max_turns=4)
    game.reset(num_players=1, seed=seed)
    _, [(_, prompt, _)] = game.get_observation()
    seen = []
    for move in moves:
        done, _ = game.step(move)
        if done:
            return prompt, seen, game.close()[0]
        seen.append(game.get_observation()[1][-1][1])
    raise AssertionError("the game did not end")


def test_a_game_is_that_of_its_seed_and_ends_with_the_games_reward():
    example = dataset(**{"GuessTheNumber-v0": {"max_turns": 4}})[3]
    moves = ["[1]", "[20]", "[7]", "[8]"]
    prompt, seen, rewards = reference(example.metadata["seed"], moves)
    shown, steps = play(example, moves)
    assert shown.strip() == prompt.strip()
    assert [step.messages.strip() for step in steps[:-1]] == [hint.strip() for hint in seen]
    assert steps[-1].done and steps[-1].reward == rewards[0]
    assert play(example, moves) == (shown, steps)


def test_a_move_without_brackets_gets_them():
    example = dataset(**{"GuessTheNumber-v0": {"max_turns": 4}})[0]
    assert play(example, ["7", "8"]) == play(example, ["[7]", "[8]"])


def test_training_and_held_out_games_have_different_seeds():
    games = {"GuessTheNumber-v0": {}}
    trained, held_out = (
        {dataset(split, **games)[i].metadata["seed"] for i in range(10)}
        for split in ("train", "held_out")
    )
    assert len(trained | held_out) == 20


def test_another_player_moves_by_its_function():
    example = dataset(**{"TicTacToe-v0": {"players": 2}})[0]
    _, steps = play(example, ["[8]", "[7]", "[6]"], opponent="environments.opponents:first_free")
    # The opponent takes 0, 1, 2 in turn, so that the policy wins with the lower row first.
    assert steps[-1].done and steps[-1].reward == 1
    with pytest.raises(UserError, match="name an opponent"):
        play(example, [])


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"GuesTheNumber-v0": {}}, "Did you mean GuessTheNumber-v0"),
        ({"GuessTheNumber-v0": {"max_turn": 3}}, "refuses"),
    ],
)
def test_a_mistake_names_the_game(datasets, message):
    with pytest.raises(UserError, match=message):
        dataset(**datasets)
