import pytest
from tools.zoo.candidates import SHARES, SOURCES, Sample, quotas, shuffled

from isoflop.errors import IsoflopError
from tools.zoo import candidates


@pytest.fixture(autouse=True)
def names(monkeypatch):
    numbers = {"timm": 900, "torchvision": 80, "transformers": 200}
    monkeypatch.setattr(
        candidates, "candidates", lambda source: [f"{source}:{i}" for i in range(numbers[source])]
    )


def drain(sample):
    return list(iter(sample.next, None))


def test_a_sample_is_stratified():
    drawn = drain(Sample.draw(SOURCES, 100, 0))
    assert len(set(drawn)) == 100
    for source, share in SHARES.items():
        assert sum(spec.startswith(f"{source}:") for spec in drawn) == round(100 * share)


def test_a_sample_depends_on_its_seed_alone():
    assert drain(Sample.draw(SOURCES, 40, 3)) == drain(Sample.draw(SOURCES, 40, 3))
    assert drain(Sample.draw(SOURCES, 40, 3)) != drain(Sample.draw(SOURCES, 40, 4))
    small, large = (set(drain(Sample.draw(SOURCES, size, 3))) for size in (40, 80))
    assert small < large
    assert shuffled(["c", "a", "b"], "timm", 1) == shuffled(["b", "c", "a"], "timm", 1)


def test_a_source_that_runs_short_is_made_up_for():
    sample = Sample.draw(SOURCES, 1000, 0)
    assert sample.size == 1000
    assert len(drain(sample)) == 1000
    assert len(sample.taken["torchvision"]) == 80
    assert len(drain(Sample.draw(SOURCES, 9999, 0))) == 1180
    assert drain(Sample.draw(["timm"], 5, 0)) == drain(Sample.draw(SOURCES, 10, 0))[:5]


def test_a_model_that_cannot_be_built_is_replaced_by_the_next_of_its_source():
    sample, longer = Sample.draw(SOURCES, 10, 0), Sample.draw(SOURCES, 20, 0)
    taken = drain(sample)
    drain(longer)
    sample.replace(next(spec for spec in taken if spec.startswith("torchvision:")))
    assert drain(sample) == [longer.taken["torchvision"][2]]
    assert sample.size == 10


def test_named_models_are_not_replaced():
    sample = Sample.of(["timm:b", "timm:a", "a.b:c", "timm:a"])
    assert drain(sample) == ["timm:b", "timm:a", "a.b:c"]
    sample.replace("timm:a")
    assert sample.next() is None


def test_an_empty_sample_is_refused():
    with pytest.raises(IsoflopError, match="--sample"):
        quotas(0, {"timm": 3})


def test_the_libraries_are_listed(monkeypatch):
    monkeypatch.undo()
    vision = candidates.candidates("torchvision")
    assert "torchvision:resnet18" in vision
    assert not any("rcnn" in name or "fcn" in name for name in vision)
    assert "timm:resnet18" in candidates.candidates("timm")
    text = candidates.candidates("transformers")
    assert {f"transformers:{name}" for name in ("gpt2", "bert", "t5")} <= set(text)
