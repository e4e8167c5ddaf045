from tests.lab.training.transfer.conftest import garments

import isoflop
from isoflop.lab.data import ImageData
from isoflop.lab.data.scenes import write_scenes
from isoflop.lab.reproduce import DataFolders
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.reproduce.work import RunWork, execute, is_done
from isoflop.lab.training import RunDirectory


def test_a_backbone_is_trained_and_transferred(tmp_path):
    images, labels = garments(40, 0)
    data = ImageData(
        train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        num_classes=10, mean=(0.3,), std=(0.3,),
    )  # fmt: skip
    write_scenes(data, tmp_path / "data", train=8, test=4, side=32)
    small = {"base_width": 4, "epochs": 1, "batch_size": 8}
    training = Training(
        recipe="fashion-scenes-segmentation",
        changes={**small, "input_shape": (1, 32, 32), "steps": 2},
        measure="macc",
        backbone=Training(
            recipe="digits",
            changes={**small, "batch_size": 256, "model": "isoflop:resnet18_cifar"},
            transform=isoflop.SparseWide(sparsity=0.75),
            method="rigl",
        ),
    )
    work = training.work(0, DataFolders(default=str(tmp_path / "data")))
    assert isinstance(work, RunWork)
    (backbone,) = work.needs
    out = tmp_path / "out"
    assert execute(backbone, out) is None
    assert execute(work, out) is None
    assert is_done(work, out)
    summary = work.result(out)
    assert summary is not None
    assert training.read(summary) == summary["macc"]
    assert 0 < abs(summary["backbone"]["relative_gap"]) < 0.01
    assert RunDirectory(out / backbone.name).summary() is not None
