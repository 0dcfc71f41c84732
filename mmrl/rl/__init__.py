"""The mathematics of policy optimisation: advantages, token weights, objectives and penalties.

Everything here is a pure function of arrays or a frozen config, and knows no model.
"""
