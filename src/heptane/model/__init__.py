"""What is done to any module: it is called, its state is kept and put back, its modes, its memory format."""
