"""Training: the loop and the run it works on, losses, schedules, metrics, faults and precision."""
