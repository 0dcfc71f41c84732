"""The copy task's reward, which also notes which process judged what, in the file JUDGED.N."""

import os

import jax
from oracles import copy_letter


def score(sample) -> dict[str, float]:
    with open(f"{os.environ['JUDGED']}.{jax.process_index()}", "a") as file:
        file.write(f"{sample.index} {sample.prompt}\n")
    return copy_letter.score(sample)
