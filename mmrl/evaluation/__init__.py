"""Evaluation: the problems of a task, responses to them, and estimates with intervals."""
