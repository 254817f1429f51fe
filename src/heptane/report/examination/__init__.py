"""Examine a trained model: one pass over held-out data after training, not counted as training time."""
