"""Print the cards of checkpoints as JSON: what each network is, what it was trained on, and how far it came.

    python -m lab.cards                      all shipped ones, a line each
    python -m lab.cards unet hybrid          these, whole
    python -m lab.cards --convert FOLDER     checkpoints of version 0.1.0, whose card is a .json beside them
"""

import argparse
import hashlib
import json
from pathlib import Path

from helpers.checkpoints import CheckpointError, checkpoint_names, read_card, read_tensors, save_tensors, tensors_sha256
from helpers.project import plain


def convert(folder):
    """Put the cards NAME.json in `folder` into NAME.safetensors, tensors unchanged, and remove them.

    The sha256 in a card, until then of the file, becomes that of the tensors, also where another card names it as its
    start.

    Raises:
        CheckpointError: weights that are not those their card vouches for; nothing is changed then.
    """
    cards, renamed = {}, {}
    for path in sorted(Path(folder).glob("[!.]*.safetensors")):
        if path.with_suffix(".json").is_file():
            cards[path] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if hashlib.sha256(path.read_bytes()).hexdigest() != cards[path]["sha256"]:
                raise CheckpointError(f"{path.name} is not the file its card describes (sha256 differs)")
            renamed[cards[path]["sha256"]] = tensors_sha256(read_tensors(path)[0])
    for path, card in cards.items():
        for key in {"sha256", "start_sha256"} & set(card):
            card[key] = renamed.get(card[key], card[key])
        tensors, metadata = read_tensors(path)
        save_tensors(tensors, path, {**metadata, "card": json.dumps(plain(card), ensure_ascii=False)})
        path.with_suffix(".json").unlink()
    return sorted(path.stem for path in cards)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--convert", metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.convert:
        print("converted:", ", ".join(convert(options.convert)) or "nothing")
    for name in options.names:
        print(json.dumps(read_card(name), indent=1, ensure_ascii=False))
    if not options.names and not options.convert:
        for name in checkpoint_names():
            card = read_card(name)
            print(f"{name:20} {card['architecture']} {card['arguments']}, {card.get('data')}; {card.get('command')}")


if __name__ == "__main__":
    main()
