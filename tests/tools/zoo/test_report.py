from tools.zoo.report import progress_line

from tools.zoo import markdown_report, text_report

PASS = {
    "spec": "timm:a|b", "status": "pass", "seconds": 1.25, "total_seconds": 3.0, "ratio": 3.5,
    "dense_macs": 1234567, "gap": -2e-9, "skipped": "50 M parameters",
}  # fmt: skip
RUN = {k: v for k, v in PASS.items() if k != "skipped"} | {"spec": "transformers:bert"}
FAIL = {
    "spec": "timm:c", "status": "fail", "stage": "transform", "error": "E", "cause": "E: a | b",
    "message": "a | b", "total_seconds": 1.0,
}  # fmt: skip
OUTCOME = {
    "versions": {"isoflop": "1", "source": "abc", "torch": "2"},
    "settings": {"transform": "wide", "config": {"sparsity": 0.75}},
    "sample": {"size": 4, "candidates": {"timm": 9, "transformers": 5}},
    "results": [
        PASS, FAIL, {**FAIL, "spec": "timm:d"}, RUN,
        {**FAIL, "spec": "transformers:x", "status": "not built", "cause": "no sound"},
    ],
}  # fmt: skip


def test_text():
    text = text_report(OUTCOME)
    assert "timm: 1 of 3 pass (33.3%)" in text
    assert "transformers: 1 of 1 pass (100.0%), 1 not built" in text
    assert "all: 2 of 4 pass (50.0%), 1 not built" in text
    assert "fail, 2: E: a | b\n  timm:c, timm:d" in text
    assert "not built, 1: no sound\n  transformers:x" in text
    assert "slowest transforms: timm:a|b 1.2 s" in text
    assert "abc" not in text


def test_markdown():
    text = markdown_report(OUTCOME, "python -m tools.zoo")
    lines = text.splitlines()
    assert "Made by `python -m tools.zoo` with isoflop 1, torch 2; wide at sparsity 0.75." in lines
    assert (
        r"| a\|b | pass | 1,234,567 | 3.500 | -2.0e-09 | 1.2 | not run: 50 M parameters |" in lines
    )
    assert "| bert | pass | 1,234,567 | 3.500 | -2.0e-09 | 1.2 | run and trained |" in lines
    assert r"| c | fail |  |  |  |  | E: a \| b |" in lines
    assert r"| 2 | E: a \| b | timm:c, timm:d |" in lines
    assert "| 1 | no sound | transformers:x |" in lines
    assert "| timm | 9 | 3 | 1 | 2 | 33.3% | 0 |" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith(" |") for line in tables)


def test_progress():
    assert progress_line(PASS, 3, 100) == "[  3/100] timm:a|b: pass, 1.2 s, ×3.50"
    assert progress_line(FAIL, 3, 9) == "[3/9] timm:c: fail (E: a | b)"
