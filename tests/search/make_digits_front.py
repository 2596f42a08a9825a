"""Makes digits_front.json: how many images each subnet of the digits space classifies correctly.

    python tests/search/make_digits_front.py RUN

trains a supernet for ten epochs into the folder RUN, unless it is there already, and evaluates every subnet
on the 287 images of the search split: six minutes of one core. After few epochs the subnets differ by more
than a few images, and the front has more than a few points.
"""

import json
import sys
from pathlib import Path

import torch

import growtas
from growtas.demo import RECIPE
from growtas.searching import Limits, feasible_set
from growtas.searching.evaluate import Evaluator
from growtas.training.run import Run

FILE = Path(__file__).with_name("digits_front.json")


def main(folder: str) -> None:
    torch.set_num_threads(1)
    if not Path(folder).exists():
        growtas.train("digits", data="digits", method="growtas", epochs=10, out=folder, **RECIPE)
    run = Run.open(folder)
    evaluator = Evaluator(run.load_net("cpu"), run.splits().search, workers=0)
    subnets = list(feasible_set(run.space, run.num_classes, Limits()))
    correct = [round(score.top1 * score.images / 100) for score in evaluator.score(subnets)]
    rows = [correct[start : start + 28] for start in range(0, len(correct), 28)]
    text = ",\n  ".join(json.dumps(row)[1:-1].replace(" ", "") for row in rows)
    FILE.write_text(f'{{"images": {evaluator.images}, "correct": [\n  {text}\n]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
