"""Images of cracked surfaces with masks, synthetic or from files and folders. Numpy alone, no torch.

Usable on its own as a crack generator; a folder of images with masks in a few lines:

    from surfaces import KINDS, draw_surface
    from surfaces.folders import write_folder

    made = ((f"{kind}-{seed}", *draw_surface(kind, seed)) for kind in KINDS for seed in range(20))
    write_folder("synthetic", made)

Synthetic: `draw` (an image from a seed), on top of `materials`, `cracks` and `textures`. Files: `photos` (read and
write one), `folders` (list and write many), `tiles` (cut them). Sets of both: `built_in` (which drawings are train,
valid and test), `training_images` (what training crops are cut from).

>>> image, mask = draw_surface("asphalt", seed=0, size=64)
>>> image.shape, mask.shape, sorted(KINDS)
((64, 64, 3), (64, 64), ['asphalt', 'concrete', 'painted', 'sand', 'terrazzo'])
"""

from surfaces.draw import KINDS, draw_surface

__all__ = ["KINDS", "draw_surface"]
