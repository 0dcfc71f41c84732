"""Log-probability and entropy of chosen tokens from hidden states, without [N, V] logits."""

from pallas_kernels.fused_head.api import token_logprobs

__all__ = ["token_logprobs"]
