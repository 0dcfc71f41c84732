"""Examples: from generated tasks and files to batches."""

from mmrl.data.pipeline import DataConfig, example_batches, examples, supervised_batches
from mmrl.data.records import Example, Sample, Status, prompt_text
from mmrl.data.tokenizer import CharTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "CharTokenizer",
    "DataConfig",
    "Example",
    "Sample",
    "Status",
    "Tokenizer",
    "example_batches",
    "examples",
    "load_tokenizer",
    "prompt_text",
    "supervised_batches",
]
