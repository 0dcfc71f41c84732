"""Secrets and personal data out of text, each replaced by its kind: [REDACTED:email].

Better too much than too little: whatever stands after `password=` counts as a password. The forms
are those that issuers document (a fixed prefix or a checksum); a secret without a form, such as a
password in a sentence, is not found. Every pattern is bounded, so that the time is linear in the
length of the text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_NAMES = r"""
    passw(?:or)?d | pwd | passphrase | secret | credential | api[_-]?key | access[_-]?key
    | account[_-]?key | private[_-]?key | (?:access|auth|refresh|session|bearer|id)[_-]?token
"""
# Named by a key, quoted or not, JSON or a shell's: `"password": "…"`, `DB_PASSWORD=…`.
_NAMED = re.compile(
    rf"""(?P<before>
        (?:{_NAMES}) \w{{0,16}} \\{{0,3}}["']? [ \t]{{0,4}} (?>=>|:=|==?|:) [ \t]{{0,4}}+
    )
    (?! \\{{0,3}}["']? \[REDACTED:)
    (?:
        (?P<quote>\\{{0,3}}["']) (?P<quoted>[^\n]{{1,512}}?) (?P=quote)
        | (?P<bare>[^\s"',;&]+)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_KEY = re.compile(rf"(?:{_NAMES}) \w{{0,16}}", re.VERBOSE | re.IGNORECASE)
_API_KEYS = r"""(?<![A-Za-z0-9])(?:
    sk-(?=[\w-]{0,64}\d)[\w-]{16,}                       # OpenAI, Anthropic and many after them
    | (?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}        # Stripe
    | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{16,}
    | (?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA|ABIA|ACCA)[A-Z0-9]{16}    # Amazon
    | AIza[\w-]{35} | ya29\.[\w-]{20,} | GOCSPX-[\w-]{20,}       # Google
    | xox[abeoprs]-[\w-]{10,} | xapp-[\w-]{10,}          # Slack
    | hf_[A-Za-z0-9]{20,} | gsk_[A-Za-z0-9]{20,} | r8_[A-Za-z0-9]{20,} | xai-[A-Za-z0-9]{20,}
    | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{50,} | dop_v1_[a-f0-9]{32,}
    | SG\.[\w-]{16,64}\.[\w-]{16,}                       # SendGrid
    | SK[a-f0-9]{32}                                     # Twilio
    | \d{8,10}:AA[\w-]{33}                               # Telegram
    | [MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,40}          # Discord
    | sq0(?:atp|csp)-[\w-]{22,} | [a-f0-9]{32}-us\d{1,2}  # Square, Mailchimp
)"""
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "private_key",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r".*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
    ),
    ("jwt", re.compile(r"(?<![\w-])eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]*")),
    ("credentials", re.compile(r"(?<=://)[^\s/:@\"']{0,256}:[^\s/@\"']{1,256}(?=@)")),
    ("api_key", re.compile(_API_KEYS, re.VERBOSE)),
    (
        "token",
        re.compile(r"(?<=\bbearer )[\w.~+/=-]{8,}|(?<=\bbasic )[\w+/=-]{16,}", re.IGNORECASE),
    ),
    ("email", re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")),
)
_DIGITS = re.compile(r"(?<![\w.])\d{4,19}(?:[ -]\d{3,19})*(?!\w)")
_CARD_GROUPS = ((4, 4, 4, 4), (4, 6, 5), (4, 4, 4, 4, 3), *((n,) for n in range(13, 20)))


def redact(value: Any) -> Any:
    """`value`, JSON of any depth, with every string in it redacted, keys too.

    Text that is a JSON object or array, as the arguments of tool calls are, is redacted as such, so
    that it stays JSON. What stands under a key such as "password" is redacted whatever its form,
    unless it is an object or array. Redacting again changes no placeholder.
    """
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, Mapping):
        return {redact(key): _redact_item(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if _cards_redacted(str(value)) == str(value) else _placeholder("card")
    return value


def _redact_item(key: Any, item: Any) -> Any:
    secret = isinstance(key, str) and _SECRET_KEY.search(key)
    if not secret or isinstance(item, Mapping | list | tuple | bool) or item in (None, ""):
        return redact(item)
    inner = redact(item)
    return inner if isinstance(inner, str) and "[REDACTED:" in inner else _placeholder("password")


def _redact_text(text: str) -> str:
    if text.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(text)
            found = redact(parsed)
            return text if found == parsed else json.dumps(found, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # text like any other
    for kind, pattern in _FORMS:
        text = pattern.sub(_placeholder(kind), text)
    return _cards_redacted(_NAMED.sub(_named, text))


def _named(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found['before']}{quote}{_placeholder('password')}{quote}"


def _cards_redacted(text: str) -> str:
    return _DIGITS.sub(lambda found: _without_card(found[0]), text)


def _without_card(digits: str) -> str:
    """Groups of digits; those that are the number of a card are replaced."""
    parts, shown, start = re.split("([ -])", digits), [], 0
    while start < len(parts):
        for layout in _CARD_GROUPS:
            end = start + 2 * len(layout) - 1
            groups = parts[start:end:2]
            if tuple(map(len, groups)) == layout and _is_card("".join(groups)):
                shown.append(_placeholder("card"))
                break
        else:
            end = start + 1
            shown.append(parts[start])
        shown += parts[end : end + 1]
        start = end + 1
    return "".join(shown)


def _is_card(number: str) -> bool:
    """Whether a network issues such numbers, and its sum is 0 mod 10 with every second digit
    doubled, from the right (Luhn, ISO/IEC 7812)."""
    digits = [int(c) for c in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return number[0] in "23456" and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _placeholder(kind: str) -> str:
    return f"[REDACTED:{kind}]"
