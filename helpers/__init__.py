"""What the notebooks import: the denoisers, activation maps, losses, and what carries them."""
