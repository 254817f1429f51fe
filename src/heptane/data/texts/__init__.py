"""Text: tokenized once, in batches of similar lengths."""
