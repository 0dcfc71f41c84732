"""Games of the package textarena (`pip install textarena`): one player, or several with opponents.

    data=DataConfig(source="mmrl.environments.textarena:games", datasets={"GuessTheNumber-v0": {}})
    environment=EnvironmentConfig("mmrl.environments.textarena:TextArena")
    reward="mmrl.rewards.environment:score"

A game's reward is the policy's at its end, as the game gives it.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Any

from mmrl.data import DataConfig, Example
from mmrl.environments.environment import Observation, Step
from mmrl.errors import UserError, nearest
from mmrl.rewards.runner import resolve

HELD_OUT = 2**31  # the first seed of held-out games


class Games:
    """`config.size` games of each name in `config.datasets`, in turn; a game is name and seed.

    The settings of a name are the game's own, and `players`, 1 unless it says more.
    """

    def __init__(self, config: DataConfig):
        self._games = list(config.datasets.items())
        self._first = (HELD_OUT if config.split == "held_out" else 0) + config.seed * config.size
        self._size = config.size
        for name, settings in self._games:
            _make(name, settings)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        name, settings = self._games[index % len(self._games)]
        metadata = {"game": name, "settings": settings, "seed": self._first + int(index)}
        return Example("", metadata=metadata | {"dataset": name})


games = Games


class TextArena:
    """A game of an example of `games`, in which the policy is `player`.

    Each observation is what is new since the player's last move. `opponent`, an import path, is
    called with what another player sees and returns its move. A move without brackets gets them,
    as textarena's own wrapper does.
    """

    def __init__(self, example: Example, opponent: str | None = None, player: int = 0):
        self.player = player
        self.opponent: Callable[[str], Any] | None = None
        if opponent is not None:
            self.opponent = resolve(opponent, "opponent")
        self.game: Any = None
        # The games draw from the one generator of `random`: each episode has a state of its own.
        self._random: Any = None

    async def reset(self, example: Example) -> Observation:
        settings = dict(example.metadata["settings"])
        players = settings.pop("players", 1)
        if players > 1 and self.opponent is None:
            raise UserError(f"{example.metadata['game']} has {players} players: name an opponent")
        self.game = _make(example.metadata["game"], settings)
        self._call(self.game.reset, num_players=players, seed=example.metadata["seed"])
        return Observation(await self._until_our_move())

    async def step(self, response: str) -> Step:
        if self._move(response):
            return self._end()
        shown = await self._until_our_move()
        return self._end() if shown is None else Step(shown)

    async def close(self) -> None:
        pass

    def _move(self, text: str) -> bool:
        """Makes the current player's move; whether the game is over."""
        text = text.strip()
        done, _ = self._call(self.game.step, text if "[" in text or "]" in text else f"[{text}]")
        return done

    async def _until_our_move(self) -> Any:
        """What the policy sees next; None if the game ends before."""
        while True:
            player, seen = self._call(self.game.get_observation)
            shown = "".join(
                f"{message.strip()}\n" for sender, message, _ in seen if sender != player
            )
            if player == self.player:
                return shown
            assert self.opponent is not None
            move = self.opponent(shown)
            if self._move(await move if isinstance(move, Awaitable) else move):
                return None

    def _end(self) -> Step:
        rewards, info = self.game.close()
        reward = float((rewards or {}).get(self.player, 0))
        invalid = bool(info[self.player].get("invalid_move"))
        return Step(done=True, reward=reward, metrics={"game/invalid_move": float(invalid)})

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outside = random.getstate()
        try:
            if self._random is not None:
                random.setstate(self._random)
            return function(*args, **kwargs)
        finally:
            self._random = random.getstate()
            random.setstate(outside)


def _make(name: str, settings: dict[str, Any]) -> Any:
    """The game without wrappers, which would say everything again at each move."""
    try:
        import textarena
        from textarena.envs.registration import ENV_REGISTRY
    except ImportError as error:
        raise UserError("textarena's games need the package: pip install textarena") from error
    if f"{name}-raw" not in ENV_REGISTRY:
        known = [known.removesuffix("-raw") for known in ENV_REGISTRY if known.endswith("-raw")]
        raise UserError(f"textarena has no game {name!r}.{nearest(name, known)}")
    own = {key: value for key, value in settings.items() if key != "players"}
    try:
        return textarena.make(f"{name}-raw", **own)
    except TypeError as error:
        raise UserError(f"game {name} refuses {own}: {error}") from error
