"""A trained model from its folder: loaded, used on raw data, exported."""
