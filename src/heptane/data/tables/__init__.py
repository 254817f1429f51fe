"""Tables: reading, and columns as numbers."""
