"""Lightning attention: causal linear attention with a fixed scalar decay per head."""

from pallas_kernels.lightning_attention.api import lightning_attention

__all__ = ["lightning_attention"]
