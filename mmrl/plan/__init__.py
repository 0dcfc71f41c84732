"""What a run needs and costs, before it: arithmetic, rooflines and prices."""
