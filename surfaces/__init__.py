"""Images of cracked surfaces with masks: drawn from a seed, or read from files and folders. Only numpy, no torch.

>>> image, mask = draw_surface("asphalt", seed=0, size=64)
>>> image.shape, mask.shape, sorted(KINDS)
((64, 64, 3), (64, 64), ['asphalt', 'concrete', 'painted', 'sand', 'terrazzo'])
"""

from surfaces.draw import KINDS, draw_surface

__all__ = ["KINDS", "draw_surface"]
