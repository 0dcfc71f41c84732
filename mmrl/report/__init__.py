"""What a run leaves and shows: metrics and rollouts on disk, live progress, the HTML report."""
