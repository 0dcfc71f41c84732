"""Conversations as they were served: logged with consent, redacted, harvested for training."""

from mmrl.conversations.journal import RATINGS, Exchange, Journal
from mmrl.conversations.redact import redact

__all__ = ["RATINGS", "Exchange", "Journal", "redact"]
