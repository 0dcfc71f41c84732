"""Other code bases' clip bounds in ours: deltas from 1, None for no bound.

Each returns (eps_low, eps_high) with the meaning, and the defaults, of its source, so a
configuration can be carried over and its traps seen.
"""


def slime_bounds(
    eps_clip: float = 0.2, eps_clip_high: float | None = None
) -> tuple[float | None, float]:
    """slime's `--eps-clip`, `--eps-clip-high`: deltas, an unset high is eps_clip.

    With the defaults CISPO silently gets ratios in [0.8, 1.2]. eps_clip >= 1 is no lower bound;
    slime's own CISPO setting is 1.0 and 4.0: ratios in [0, 5].
    """
    eps_low = None if eps_clip >= 1 else eps_clip
    return eps_low, eps_clip if eps_clip_high is None else eps_clip_high


def trl_bounds(epsilon_high: float) -> tuple[None, float]:
    """TRL's `epsilon_high` for loss_type="cispo": the greatest ratio itself, no lower bound.

    Also ms-swift and Liger-Kernel. TRL's default of 0.2 scales every on-policy gradient by 0.2.

    Raises:
        ValueError: epsilon_high <= 1, which is surely meant as a delta.
    """
    if epsilon_high <= 1:
        raise ValueError(
            f"TRL's epsilon_high is the greatest ratio: {epsilon_high} would shrink on-policy "
            f"gradients too. Use 1 + delta, e.g. 5.0"
        )
    return None, epsilon_high - 1


def roll_bounds(
    cispo_epsilon_low: float = 0.1, cispo_epsilon_high: float = 0.1
) -> tuple[float, float]:
    """ROLL's `cispo_epsilon_low`, `cispo_epsilon_high`: deltas, by default ratios in [0.9, 1.1].

    ROLL's unified mask reuses them; give them to `cispo` as mask_eps_low and mask_eps_high too.
    """
    return cispo_epsilon_low, cispo_epsilon_high
