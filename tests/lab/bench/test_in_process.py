import functools

import pytest

from isoflop.lab.bench.agree import TOLERANCE, TOLERANCE_BF16, relative_error
from isoflop.lab.bench.contestant import CONTESTANTS
from isoflop.lab.bench.layer_case import layer_case
from isoflop.lab.bench.model_case import model_case
from isoflop.lab.bench.run import run_bench

NAMES = [name for name in CONTESTANTS.names() if not CONTESTANTS.get(name).peer] + ["torch_csr"]
COMPILED = [name for name in NAMES if name.endswith("compiled")]
EAGER = [name for name in NAMES if name not in COMPILED]

CASES = {
    "inference": functools.partial(model_case, "inference", "isoflop:resnet8_digits", batch=2),
    "training": functools.partial(model_case, "training", "isoflop:resnet8_digits", batch=4),
    "linear": functools.partial(layer_case, "linear", inputs=8, outputs=12, batch=4),
    "linear, backward": functools.partial(
        layer_case, "linear", inputs=8, outputs=12, batch=4, backward=True
    ),
    "conv, backward": functools.partial(
        layer_case, "conv", inputs=4, outputs=8, batch=2, image=6, backward=True
    ),
}


def check(build, name, folder):
    case = build(sparsity=0.75, threads=1, folder=folder)
    contestant = CONTESTANTS.get(name)()
    reason = contestant.unsuited(case, folder)
    if reason is not None:
        pytest.skip(reason)
    contestant.prepare(case, folder)
    job = case.dense if contestant.on_dense else case.sparse
    tolerance = TOLERANCE_BF16 if contestant.bf16 else TOLERANCE
    assert relative_error(contestant.outputs(), job.reference) <= tolerance[case.kind]
    assert contestant.run() > 0
    contestant.close()


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_every_contestant_computes_what_plain_pytorch_does(build, name, tmp_path):
    check(build, name, tmp_path)


# The compiler's own warnings are none of ours.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("build", [CASES["linear"], CASES["linear, backward"]])
def test_the_compiled_model_computes_the_same(build, name, tmp_path):
    check(build, name, tmp_path)


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_results_of_all_sparsities(build, tmp_path):
    done = []
    results = run_bench(
        build,
        [0.0, 0.5],
        threads=1,
        repeats=2,
        peers=("none",),
        skip=COMPILED,
        bf16=True,
        tell=lambda line: None,
        done=lambda results: done.append(len(results)),
    )
    assert done == [1, 2]
    assert [r["workload"]["sparsity"] for r in results] == [0.0, 0.5]
    for result in results:
        assert result["failed"] == {}
        assert {"dense", "dense_contiguous", "masked", "isoflop"} <= result["seconds"].keys()
        for name, ratio in result["ratio_to_dense"].items():
            assert ratio == result["seconds"][name] / result["seconds"]["dense"]
        assert result["seconds"]["dense"] == min(
            seconds
            for name, seconds in result["seconds"].items()
            if name.startswith("dense_") and "bf16" not in name
        )
        assert "dense_bf16" in result["seconds"]
        for name, rounds in result["rounds"].items():
            assert len(rounds) == 2
            assert result["seconds"][name] == min(rounds)
