"""Train the networks of the series, one after the other; a run that was stopped goes on where it was.

    python scripts/train.py                      every shipped network that is not there yet
    python scripts/train.py --only unet conv     these
    python scripts/train.py --only student       the built-in ViT (scripts/student.py)
    python scripts/train.py --list               the recipes

A run that had ended counts as trained as long as its state is in data/runs/NAME; remove that to train it again.
Photographs come from CRACK_PHOTOS; without it the networks are trained on the drawn surfaces alone. On several GPUs:
`accelerate launch scripts/train.py --only unet`.
"""

import argparse

from student import TEACHER, train_student

from helpers.checkpoints import checkpoint_names
from helpers.recipes import RECIPES
from helpers.training import train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes to run, in this order")
    parser.add_argument("--list", action="store_true", help="show the recipes and stop")
    parser.add_argument("--workers", type=int, default=0,
                        help="processes that prepare crops (0: none; 8 or more for a GPU)")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {*RECIPES, "student"}
    if unknown:
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are student, {', '.join(RECIPES)}")
    if options.list:
        for name, recipe in RECIPES.items():
            print(f"{name:18} {recipe}")
        return
    missing = [name for name, recipe in RECIPES.items() if recipe.shipped and name not in checkpoint_names()]
    for name in options.only or missing:
        if name == "student":
            train_student(TEACHER, workers=options.workers)
        else:
            train(name, workers=options.workers)


if __name__ == "__main__":
    main()
