"""The life of a run: settings, records, folder, checkpoints; and loading, using and exporting the trained model."""
