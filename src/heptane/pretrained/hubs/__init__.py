"""Other people's models: those of timm and those of Hugging Face, built from their names, and their weights."""
