"""What trains: the loop and the run it works on, losses, schedules, averages, faults."""
