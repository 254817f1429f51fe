"""Folders of images: listing, decoding, and keeping the pixels."""
