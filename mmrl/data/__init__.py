"""Examples: from generated tasks and files to batches."""

from mmrl.data.pipeline import DataConfig, example_batches, examples, supervised_batches
from mmrl.data.records import Example, Sample, Status, prompt_tokens

__all__ = [
    "DataConfig",
    "Example",
    "Sample",
    "Status",
    "example_batches",
    "examples",
    "prompt_tokens",
    "supervised_batches",
]
