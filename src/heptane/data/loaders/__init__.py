"""A user's ``DataLoader``: its batches by step, without unreadable samples."""
