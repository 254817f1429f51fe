"""Work with any module: forward pass, output, modes, names, memory format, and saved and restored state."""
