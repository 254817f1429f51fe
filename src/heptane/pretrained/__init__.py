"""What transfer needs to know of a model: its layers by depth, its head, where it can be cut; and what it adds to one."""
