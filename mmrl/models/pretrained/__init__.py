"""Checkpoints of other projects: Hugging Face safetensors and GGUF, read lazily and written out."""
