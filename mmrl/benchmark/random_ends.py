"""Runs a script whose model is transformers' with responses that end at random lengths.

    PYTHON random_ends.py SHORTEST SCRIPT [ARGUMENTS…]

Every `generate` gets a logits processor that lets the end token through for a row at its own
length, drawn uniformly from SHORTEST to the most new tokens, and never before: the row is finished
there as it would be by a model that ends. `min_new_tokens`, which would forbid it, is dropped.
Imports nothing of mmrl: it runs in the other framework's environment.
"""

import runpy
import sys

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList


class EndsAt(LogitsProcessor):
    """The end token is certain at a row's last token and impossible before."""

    def __init__(self, lengths: torch.Tensor, prompt: int, end: int):
        self.lengths, self.prompt, self.end = lengths, prompt, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt + 1 >= self.lengths
        scores[:, self.end] = -torch.inf
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end] = 0
        return torch.where(last[:, None], only_end, scores)


def patched(generate, shortest: int):
    def with_random_ends(self, *args, generation_config, **kwargs):
        rows, prompt = kwargs["input_ids"].shape
        lengths = torch.randint(shortest, generation_config.max_new_tokens + 1, (rows,))
        end = self.config.eos_token_id
        processors = LogitsProcessorList([EndsAt(lengths, prompt, end)])
        return generate(
            self,
            *args,
            generation_config=generation_config,
            logits_processor=processors,
            min_new_tokens=0,
            **kwargs,
        )

    return with_random_ends


if __name__ == "__main__":
    shortest, script = int(sys.argv[1]), sys.argv[2]
    setattr(GenerationMixin, "generate", patched(GenerationMixin.generate, shortest))  # noqa: B010
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
