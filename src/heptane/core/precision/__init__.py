"""Which precision and memory format a step is computed in, measured on this machine."""
