"""Memory that the process keeps."""

import subprocess
import sys
import textwrap

PROGRAM = """
    import resource, sys
    import torch
    from isoflop.kernels import retain_freed_memory

    if sys.argv[1] == "keep" and not retain_freed_memory():
        sys.exit("unsupported")
    torch.ones(8 << 20)  # 32 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), how], capture_output=True, text=True
    )
    if "unsupported" in run.stderr:
        return 0
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_kept_memory_is_not_mapped_again():
    # The system may take pages back by itself, so not all faults go.
    assert faults("keep") < faults("give") / 2
