"""Experiments on what MiniMax-M1's paper claims; `docs/studies.md` has their results."""
