"""Converts a model between Hugging Face directories, GGUF files and mmrl's Orbax directories.

    python -m mmrl.convert --source=SmolLM2.gguf --target=smollm2
    python -m mmrl.convert --source=runs/mine --target=export --dtype=bfloat16

The source is a Hugging Face directory, a .gguf file, or an mmrl run directory, whose last
checkpoint is taken, adapters merged; `--format=peft` writes its adapters alone. From the first two
to Hugging Face's form one tensor is in memory at a time; otherwise the model is.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from absl import flags
from flax import nnx

from mmrl import config as configs
from mmrl.errors import UserError, user_mistakes
from mmrl.models.pretrained.load import load, open_checkpoint
from mmrl.models.pretrained.matching import StoredDtype
from mmrl.models.pretrained.names import Parameter
from mmrl.models.pretrained.orbax import is_run, save_orbax
from mmrl.models.pretrained.peft import save_peft
from mmrl.models.pretrained.save import export, replacing, save_hf, save_tokenizer

Format = Literal["hf", "orbax", "peft"]
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Model to read.", required=True)
    flags.DEFINE_string("target", None, "Directory to write.", required=True)
    flags.DEFINE_enum("format", "hf", get_args(Format), "Form of the target.")
    flags.DEFINE_enum("dtype", None, get_args(StoredDtype), "Dtype of the weights [the source's].")


def convert(
    source: Path, target: Path, form: Format = "hf", dtype: StoredDtype | None = None
) -> None:
    """Writes the model `source` to the directory `target`, which is replaced when that is done.

    Raises `UserError` with the file, the tensor, what was expected and what was found.
    """
    if form == "orbax":
        _to_orbax(source, target, dtype)
    elif form == "peft":
        save_peft(load(source)[0], target)
    elif is_run(source):
        model, tokenizer = load(source)
        save_hf(nnx.state(model), model.config, target, tokenizer, dtype)
    else:
        _stream(source, target, dtype)


def _stream(source: Path, target: Path, dtype: StoredDtype | None) -> None:
    """From Hugging Face or GGUF to Hugging Face, tensor by tensor."""
    checkpoint = open_checkpoint(source)
    stored = {s.parameter.path: s for s in checkpoint.stored}

    def read(p: Parameter, row: int, expert: int | None) -> Any:
        shape = p.shape if expert is None else p.shape[1:]
        return stored[p.path].read_layer(row, tuple(slice(0, n) for n in shape), expert)

    ids = {name: checkpoint.fields[name] for name in TOKEN_IDS if name in checkpoint.fields}
    own = dtype or checkpoint.dtype
    export(checkpoint.config, read, target, checkpoint.tokenizer(), own, ids)


def _to_orbax(source: Path, target: Path, dtype: StoredDtype | None) -> None:
    if dtype == "float16":
        raise UserError("Orbax directories hold float32 or bfloat16; choose --dtype accordingly")
    model, tokenizer = load(source, param_dtype=dtype)
    with replacing(target) as partial:
        save_orbax(model, partial)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --source=… and --target=…")
    values = flags.FLAGS
    with user_mistakes():
        convert(Path(values.source), Path(values.target), values.format, values.dtype)


if __name__ == "__main__":
    define_flags()
    configs.run(main)
