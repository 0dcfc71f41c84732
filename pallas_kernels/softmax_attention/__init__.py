"""Causal, segmented, grouped-query softmax attention over a key-value cache."""

from pallas_kernels.softmax_attention.api import merge_attention, softmax_attention

__all__ = ["merge_attention", "softmax_attention"]
