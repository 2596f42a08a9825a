"""From a trained run to a searched, extracted and saved subnet, each step given only the run's folder."""

import pytest
import torch

import growtas
from growtas import export
from growtas.errors import UsageError
from growtas.searching import read_result
from growtas.searching.evaluate import Evaluator
from growtas.training.data import evaluation_loader
from growtas.training.run import Run

SMALL = {"population": 5, "generations": 2, "parents": 2, "max_params": 40_000, "batch_size": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "digits"
    growtas.train(
        "digits", method="uniform", epochs=2, batch_size=128, out=out, eval_every=0, tensorboard=False
    )
    return out


def test_a_run_is_searched_extracted_and_saved(folder, tmp_path):
    found = growtas.search(folder, **SMALL)
    assert found == read_result(folder)
    assert found.path == folder / "search-max-params-40000-population-5-generations-2-parents-2.jsonl"
    run = Run.open(folder)
    splits, net = run.splits(), run.load_net()
    assert found.test_top1 == Evaluator(net, splits.test).top1(found.best.subnet)
    assert found.best.top1 == Evaluator(net, splits.search).top1(found.best.subnet)

    model = growtas.extract(folder, found.best.subnet)
    assert model.extraction_error < 1e-6
    assert sum(parameter.numel() for parameter in model.parameters()) == found.best.params <= 40_000

    # the saved model is as accurate on the test split as the supernet's slice was, image for image
    loaded = export.load(export.save(model, tmp_path / "best"))
    with torch.inference_mode():
        for images, _ in evaluation_loader(splits.test, 512):
            torch.testing.assert_close(loaded(images), net(images, found.best.subnet), rtol=1e-5, atol=1e-6)
    correct = sum((loaded(x).argmax(1) == y).sum().item() for x, y in evaluation_loader(splits.test, 512))
    assert 100 * correct / len(splits.test) == found.test_top1


def test_the_saved_preprocessing_is_what_the_run_saw(folder):
    """timm normalises pixels in 0 to 1 with the saved mean and deviation: the run's own images come out."""
    from sklearn.datasets import load_digits

    cfg = growtas.extract(folder, Run.open(folder).space.smallest()).pretrained_cfg
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    normalised = (pixels - cfg["mean"][0]) / cfg["std"][0]
    seen = torch.cat([images for images, _ in evaluation_loader(Run.open(folder).splits().search, 512)])
    distances = torch.cdist(seen.flatten(1), normalised.flatten(1)).min(1).values
    assert distances.max() < 1e-2
    assert cfg["input_size"] == (1, 8, 8)


def test_a_search_leaves_the_run_as_it_was(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    growtas.search(folder, out=tmp_path, seed=1, **SMALL)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    for use in (growtas.search, lambda path: growtas.extract(path, "d24-h2,2,2-r2,2,2")):
        with pytest.raises(UsageError, match="does not exist"):
            use(tmp_path / "nothing")
        with pytest.raises(UsageError, match="holds no run"):
            use(tmp_path)
        assert list(tmp_path.iterdir()) == []
