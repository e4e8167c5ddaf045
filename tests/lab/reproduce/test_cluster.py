"""On a Ray cluster of two workers on this machine; skipped where Ray is not installed."""

import socket

import pytest
from tests.lab.reproduce.works import Lonely

import isoflop
from isoflop.errors import IsoflopError
from isoflop.lab.reproduce import DataFolders
from isoflop.lab.reproduce.cluster import RayExecutor
from isoflop.lab.reproduce.schedule import run_all
from isoflop.lab.reproduce.sources import Training

pytest.importorskip("ray")


def test_two_workers(tmp_path):
    training = Training(
        recipe="digits",
        changes={"base_width": 4, "epochs": 1, "update_every": 8},
        transform=isoflop.SparseWide(sparsity=0.5),
        method="rigl",
    )
    wrong = Training(recipe="digits", changes={"base_width": 4, "epochs": 1, "batch_size": 5000})
    works = [training.work(1, DataFolders()), wrong.work(0, DataFolders())]
    ended = {}
    with RayExecutor("local", processors=2) as executor:
        run_all(works, tmp_path, executor, lambda work, error: ended.update({work.name: error}))
        with pytest.raises(IsoflopError, match="leave out --ray"):
            executor.start(Lonely(label="a"), tmp_path)
    assert ended[works[0].name] is None
    assert (works[0].result(tmp_path) or {})["seed"] == 1
    assert "batch_size 5000 exceeds" in ended[works[1].name]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_out_of_reach(form):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(IsoflopError, match="out of reach"):
        RayExecutor(form.format(port))


@pytest.mark.parametrize("address", ["here", "here:", ":80"])
def test_no_address(address):
    with pytest.raises(IsoflopError, match="is no address"):
        RayExecutor(address)
