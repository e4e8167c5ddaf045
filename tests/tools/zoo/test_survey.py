import json

import pytest
from tools.zoo.__main__ import main
from tools.zoo.pool import check_all

import isoflop
from tools.zoo import Sample, survey, text_report

CONFIG = isoflop.SparseWide(0.75)


def run_all(specs, **options):
    waiting = list(specs)
    found = check_all(lambda: waiting.pop(0) if waiting else None, lambda _: CONFIG, **options)
    return {result["spec"].partition(":")[2]: result for result in found}


def test_a_process_that_dies_fails_alone(models):
    found = run_all([f"{models}:{name}" for name in ("crashes", "good", "raises")], jobs=2)
    assert found["good"]["status"] == "pass", found["good"]
    assert found["good"]["peak_mib"] > 0
    assert found["raises"]["error"] == "InputError"
    crash = found["crashes"]
    assert (crash["status"], crash["error"], crash["stage"]) == ("fail", "Crash", "transform")
    assert "exit code -9" in crash["message"]


def test_a_process_that_hangs_is_ended(models):
    found = run_all([f"{models}:hangs"], timeout=5.0)
    assert found["hangs"]["error"] == "Timeout"


def test_a_process_that_takes_too_much_memory_is_ended(models):
    found = run_all([f"{models}:eats"], memory=3 << 28)
    assert found["eats"]["error"] == "Memory"
    assert found["eats"]["peak_mib"] >= 3 << 8  # whole MiB, rounded down


def test_a_survey_goes_on_where_it_was(models, tmp_path):
    out = tmp_path / "out.json"
    specs = [f"{models}:good", f"{models}:wider", "torchvision:squeezenet1_1"]
    lines: list[str] = []
    outcome = survey(CONFIG, Sample.of(specs), jobs=2, out=out, tell=lines.append)
    assert [r["spec"] for r in outcome["results"]] == specs
    assert [r["status"] for r in outcome["results"]] == ["pass"] * 3, outcome
    assert len(lines) == 3
    assert lines[-1].startswith("[3/3] ")
    assert json.loads(out.read_text()) == outcome
    assert "torchvision: 1 of 1 pass (100.0%)" in text_report(outcome)

    lines.clear()
    more = Sample.of([*specs, f"{models}:unbuilt"])
    again = survey(CONFIG, more, out=out, tell=lines.append)
    known = {line.split()[1] for line in lines if line.endswith("(known)")}
    assert known == {f"{spec}:" for spec in specs}
    found = {result["spec"]: result for result in again["results"]}
    assert found.pop(f"{models}:unbuilt")["status"] == "not built"
    assert list(found.values()) == outcome["results"]

    lines.clear()
    survey(CONFIG, Sample.of(specs[:1]), out=out, fresh=True, tell=lines.append)
    survey(isoflop.SparseWide(0.5), Sample.of(specs[:1]), out=out, tell=lines.append)
    assert not any(line.endswith("(known)") for line in lines)


def test_command(models, tmp_path, capsys):
    markdown = tmp_path / "models.md"
    main(["--models", f"{models}:good", "--markdown", str(markdown), "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["results"][0]["status"] == "pass"
    assert err.startswith("[1/1] ")
    text = markdown.read_text()
    assert f"`python -m tools.zoo --models {models}:good --transform wide --sparsity 0.75`" in text
    assert "| good | pass |" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sample", "0"], "--sample"),
        (["--jobs", "0", "--models", "timm:resnet18"], "--jobs"),
        (["--timeout", "0", "--models", "timm:resnet18"], "--timeout"),
        (["--transform", "wde"], "wide"),
        (["--sparsity", "1"], "sparsity"),
        (["--out", "nowhere/out.json"], "there is no folder nowhere"),
        (["--out", __file__, "--models", "timm:resnet18"], "cannot be read"),
        (["--markdown", "nowhere/out.md"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, args, message):
    with pytest.raises(SystemExit) as error:
        main([*args])
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
