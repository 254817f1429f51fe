"""What a checkpoint holds, when one is written and which stay, and how it is put back."""
