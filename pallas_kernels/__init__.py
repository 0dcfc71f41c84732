"""Attention and expert kernels, each with a reference, an XLA form and one public function."""

from pallas_kernels.lightning_attention import lightning_attention

__all__ = ["lightning_attention"]
