"""What the files of a checkpoint say about its tokenizer, read and written."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.errors import UserError
from mmrl.text.chat import ChatTemplate
from mmrl.text.gguf import backend_from_gguf, read_tokenizer_metadata

if TYPE_CHECKING:
    import tokenizers

_ADDITIONAL = "additional_chat_templates"
# Copied as they are when a tokenizer in Hugging Face form is saved elsewhere.
_COPIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)
_GGUF_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
_GGUF_STOPS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its checkpoint describes it.

    tokens     {"eos_token": its text, …}
    stop_ids   of generation_config.json
    templates  {"default": Jinja text, "tool_use": …}
    source     the tokenizer.json, None if it came from a GGUF file
    """

    backend: "tokenizers.Tokenizer"
    tokens: Mapping[str, str] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None


def read_hf(path: Path) -> TokenizerFiles:
    """From a Hugging Face directory, or a tokenizer.json with the other files beside it."""
    import tokenizers

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"no tokenizer {file}: expected a directory with a tokenizer.json, a tokenizer.json "
            "or a .gguf file"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # what the library raises has no narrower type
        raise UserError(f"{file} is not a tokenizer file: {error}") from error
    directory = file.parent
    config = _read_json(directory / "tokenizer_config.json")
    named = _read_json(directory / "special_tokens_map.json") | config
    generation = _read_json(directory / "generation_config.json")
    stops = generation.get(
        "eos_token_id", _read_json(directory / "config.json").get("eos_token_id")
    )
    return TokenizerFiles(
        backend,
        {key: text for key in named if key.endswith("_token") if (text := _token(named[key]))},
        tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,),
        _templates(directory, config),
        file,
    )


def read_gguf(path: Path) -> TokenizerFiles:
    """From the metadata of a GGUF file."""
    metadata = read_tokenizer_metadata(path)
    pieces = metadata["tokenizer.ggml.tokens"]
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _GGUF_STOPS]
    prefix = "tokenizer.chat_template"
    return TokenizerFiles(
        backend_from_gguf(metadata, path),
        {name: pieces[metadata[key]] for name, key in _GGUF_TOKENS.items() if key in metadata},
        tuple(index for index in stops if index is not None),
        {
            key.removeprefix(prefix).removeprefix(".") or "default": text
            for key, text in metadata.items()
            if key == prefix or key.startswith(f"{prefix}.")
        },
    )


def write_hf(
    files: TokenizerFiles, path: Path, template: ChatTemplate | None, stop_ids: tuple[int, ...]
) -> None:
    """Writes tokenizer.json to `path` and the other files beside it.

    Files that the checkpoint has are copied. `template` replaces its chat template.
    generation_config.json, with `stop_ids`, is written only where there is none.
    """
    directory, config = path.parent, path.parent / "tokenizer_config.json"
    if files.source is not None:
        _copy(files.source, path)
        for name in _COPIED:
            _copy(files.source.parent / name, directory / name)
    else:
        path.write_text(files.backend.to_str(), encoding="utf-8")
    if not config.is_file():
        # transformers, and the engines that use it, take tokenizer.json as it is with this class.
        fixed = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        _write_json(config, fixed | dict(files.tokens))
    templates = dict(files.templates) if template is None else {"default": template.source}
    if "default" in templates:
        _write(directory / "chat_template.jinja", templates.pop("default"))
    for name, text in templates.items():
        (directory / _ADDITIONAL).mkdir(exist_ok=True)
        _write(directory / _ADDITIONAL / f"{name}.jinja", text)
    if not (directory / "generation_config.json").is_file():
        _write_json(directory / "generation_config.json", {"eos_token_id": list(stop_ids)})


def _templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files win over tokenizer_config.json, as in transformers."""
    found = config.get("chat_template") or {}
    if isinstance(found, str):
        found = {"default": found}
    elif isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found if "template" in entry}
    file = directory / "chat_template.jinja"
    files = {"default": file} if file.is_file() else {}
    files |= {file.stem: file for file in sorted((directory / _ADDITIONAL).glob("*.jinja"))}
    found |= {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    return found if "default" in found or len(found) != 1 else {"default": [*found.values()][0]}


def _token(value: Any) -> str | None:
    """The text of a token, which is given as such or as {"content": text, …}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not (target.is_file() and source.samefile(target)):
        shutil.copyfile(source, target)
