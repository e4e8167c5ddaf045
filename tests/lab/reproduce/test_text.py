from isoflop.lab.reproduce.text import format_markdown, format_table


def row(**values):
    empty = dict.fromkeys(("mean", "std", "paper", "paper_std", "difference"))
    rest = {"seeds": 0, "seeds_wanted": 3, "note": "", "deviation": "", "results": []}
    return {**empty, **rest, **values}


TABLE = {
    "title": "Table 0",
    "unit": "accuracy %",
    "preset": "smoke",
    "paper_setting": False,
    "setting": "digits in place of cifar100",
    "rows": [
        row(
            method="dense", mean=90.0, std=1.0, seeds=3, paper=77.0, paper_std=0.2, difference=13.0
        ),
        row(method="rigl", sparsity=0.9, mean=91.5, seeds=1, paper=80.1, difference=11.4),
        row(method="set", sparsity=0.9, paper=79.8, note="failed"),
    ],
    "failed": [{"run": "runs/x/seed0", "error": "It diverged."}],
}


def test_text():
    lines = format_table(TABLE).splitlines()
    assert lines[0] == "Table 0"
    assert "NOT the paper's setting" in lines[1]
    assert lines[2] == "Here: digits in place of cifar100."
    assert lines[4].split() == [
        "method", "sparsity", "ours,", "accuracy", "%", "seeds", "paper", "difference", "note"
    ]  # fmt: skip
    assert lines[5].split() == ["dense", "90.00", "±", "1.00", "3", "77.00", "±", "0.20", "+13.00"]
    assert lines[6].split() == ["rigl", "0.9", "91.50", "1", "of", "3", "80.10", "+11.40"]
    assert lines[7].split() == ["set", "0.9", "–", "0", "of", "3", "79.80", "failed"]
    assert lines[8:] == ["failed: runs/x/seed0: It diverged."]


def test_markdown():
    text = format_markdown(TABLE)
    assert "| rigl | 0.9 | 91.50 | 1 of 3 | 80.10 | +11.40 |  |" in text
    assert "| --- | --- | ---: | ---: | ---: | ---: | --- |" in text
    assert "NOT the paper's setting" in text
    assert "failed: runs/x/seed0: It diverged." in text


def test_the_papers_setting_and_large_numbers():
    rows = [row(property="parameters", mean=1.25e8, seeds=3, paper=1.2e8, difference=5e6)]
    text = format_table({**TABLE, "paper_setting": True, "rows": rows, "failed": []})
    assert "Preset smoke: the paper's setting." in text
    assert text.splitlines()[-1].split() == ["parameters", "1.25e+08", "3", "1.2e+08", "+5e+06"]
