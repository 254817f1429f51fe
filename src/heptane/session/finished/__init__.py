"""Load a trained model from its folder, predict on raw data, export."""
