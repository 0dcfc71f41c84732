"""The tokenizer that a GGUF file describes: byte-level BPE, as llama.cpp's model "gpt2".

GGUF holds tokens, merges and the name of a pre-tokenizer, whose expressions are those of the
original tokenizer.json. The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.errors import UserError, nearest
from mmrl.gguf_header import read_header

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = "|".join(
    (
        rf"{_BEFORE}{_CASED[0]}*{_CASED[1]}+{_ENDINGS}?",
        rf"{_BEFORE}{_CASED[0]}+{_CASED[1]}*{_ENDINGS}?",
        rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    )
)
_WORDS = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}{{DIGITS}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3, _QWEN2 = _WORDS.replace("{DIGITS}", "{1,3}"), _WORDS.replace("{DIGITS}", "")
# Name in the file -> expression that splits text; None is the one of GPT-2.
_SPLITS = {
    "default": None,
    "gpt-2": None,
    "gpt-4o": _GPT4O,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "minimax-m2": _GPT4O,
    "qwen2": _QWEN2,
    "smollm": None,
}


def read_tokenizer_metadata(path: Path) -> dict[str, Any]:
    """The `tokenizer.*` keys of the file. Raises `UserError` for what is no GGUF file."""
    metadata, _ = read_header(path)
    found = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in found:
        raise UserError(f"{path} holds no tokenizer: it has no key tokenizer.ggml.tokens")
    return found


def backend_from_gguf(metadata: dict[str, Any], path: Path) -> "tokenizers.Tokenizer":
    """Byte-level BPE from `tokenizer.ggml.*`; control tokens are special, user-defined ones whole.

    Raises `UserError` that names the file and what is supported for another model or pre-tokenizer.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model != "gpt2":
        raise UserError(f"{path}: tokenizer model {model!r} is not supported; 'gpt2' is")
    if pre not in _SPLITS:
        raise UserError(
            f"{path}: pre-tokenizer {pre!r} is not supported.{nearest(str(pre), _SPLITS)} "
            f"Supported are {', '.join(_SPLITS)}"
        )
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.merges")
    types = metadata.get("tokenizer.ggml.token_type", [])
    if merges is None or (types and len(types) != len(tokens)):
        raise UserError(f"{path}: expected tokenizer.ggml.merges, and a token_type for each token")
    try:
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=[tuple(merge.split(" ")) for merge in merges],
                ignore_merges=_SPLITS[pre] is _LLAMA3,
            )
        )
    except Exception as error:  # what the library raises has no narrower type
        raise UserError(f"{path}: its merges do not fit its tokens: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        whole = [token for token, type_ in zip(tokens, types, strict=False) if type_ == kind]
        backend.add_tokens(
            [AddedToken(token, normalized=False, special=special) for token in whole]
        )
    _add_bos(backend, metadata, pre)
    return backend


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    expression = _SPLITS[pre]
    if expression is not None:
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    return byte_level


def _add_bos(backend: "tokenizers.Tokenizer", metadata: dict[str, Any], pre: str) -> None:
    """What other programs that read the saved tokenizer put first, as llama.cpp would."""
    from tokenizers import processors

    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", _SPLITS[pre] is _LLAMA3):
        return
    token = metadata["tokenizer.ggml.tokens"][bos]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, bos)]
    )
