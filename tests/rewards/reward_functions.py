"""Rewards that tests name by import path."""

NOT_A_FUNCTION = 1


def exact_match(sample):
    return float(sample.response == sample.label)
