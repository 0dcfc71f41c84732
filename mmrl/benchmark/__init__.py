"""Times mmrl on this machine: `python -m mmrl.benchmark --help`."""
