"""First form of the command."""

import argparse
import collections
import importlib.metadata
import sys
from pathlib import Path

from isoflop.files import write_json
from isoflop.training.configs import build_transform
from isoflop.zoo.candidates import SOURCES, candidates, quotas, shuffled
from isoflop.zoo.run import check_all


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--source", choices=SOURCES, default=None)
    parser.add_argument("--transform", default="wide")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--timeout", type=float, default=300)
    args = parser.parse_args()
    config = build_transform(args.transform, sparsity=args.sparsity)
    ends = build_transform(args.transform, sparsity=args.sparsity, dense_ends=False)
    results = []
    if args.models:
        queues = {"models": list(args.models)}
        wanted = {"models": len(args.models)}
    else:
        sources = [args.source] if args.source else list(SOURCES)
        queues = {s: shuffled(candidates(s), s, args.seed) for s in sources}
        wanted = quotas(args.sample, {s: len(q) for s, q in queues.items()})
    total = sum(wanted.values())
    group = {}

    def next_spec():
        for source, queue in queues.items():
            if queue and wanted[source] > 0:
                wanted[source] -= 1
                spec = queue.pop(0)
                group[spec] = source
                return spec
        return None

    done = 0
    for result in check_all(
        next_spec, lambda s: ends if s.startswith("transformers:") else config,
        jobs=args.jobs, timeout=args.timeout,
    ):
        results.append(result)
        if result["status"] == "not built" and group[result["spec"]] != "models":
            wanted[group[result["spec"]]] += 1
        else:
            done += 1
        print(f"[{done}/{total}] {result['spec']:50} {result['status']:9} "
              f"{result.get('seconds', '')!s:>7} s ({result['total_seconds']} s, "
              f"{result['peak_mib']} MiB) ratio {result.get('ratio', 0):.2f} "
              f"{result.get('cause', '')}", flush=True)
        write_json(args.out, {"results": results})
    causes = collections.defaultdict(list)
    for r in results:
        if r["status"] != "pass":
            causes[r["status"], r["cause"]].append(r["spec"])
    for (status, cause), specs in sorted(causes.items(), key=lambda x: -len(x[1])):
        print(f"{len(specs):4} {status}: {cause}\n       {', '.join(specs)}")
    print(collections.Counter((r["spec"].partition(":")[0], r["status"]) for r in results))


if __name__ == "__main__":
    main()
