"""Pretrained models: layers by depth, head, freezing, feature cache and adapters; weights of any source."""
