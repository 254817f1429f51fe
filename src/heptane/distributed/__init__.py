"""What several workers need: they are started and watched, and a model is shared out; what more of them would bring."""
