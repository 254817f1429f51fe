"""A run's life: its records, its folder, its checkpoints, its end; and what a finished run is good for."""
