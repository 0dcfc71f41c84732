"""An opponent for `tests/environments/test_textarena.py`."""


def first_free(seen: str) -> str:
    """TicTacToe's first move that the game says is available."""
    return seen.rpartition("Available Moves: ")[2].partition(",")[0].strip("'\n")
