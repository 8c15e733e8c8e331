"""Small, exact helpers for the notebooks "What does a denoiser look at?"."""

__version__ = "0.1.0"
