"""The laboratory: recipes, resumable training, experiments and reports; each module runs as ``python -m lab.NAME``."""
