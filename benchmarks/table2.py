"""Rows of the paper's Table 2 on a CPU: the recipes as they are (ResNet-32, 32 pixels, its views), for fewer epochs.

    python benchmarks/table2.py --data DIR --epochs 80 --rows baseline cbn cbn-sbn-dpl
    python benchmarks/table2.py --data DIR --epochs 80 --rows cbn-sbn-dpl --learning-rate 0.02
    python benchmarks/table2.py --data DIR --epochs 80 --rows cbn --momentum 0.9
    python benchmarks/table2.py --epochs 80 --table

On one core an epoch takes about 33 s with batch norm, 45 s with CBN, 75 s with a split path beside it and 102 s with
the whole method (the runs below results/table2); a run that was stopped goes on after its last epoch. Convolutions are
in bfloat16 (`precision=bf16`); the learning rate comes down over the epochs that there are.
The 400 epochs of the paper are for a GPU: `gpu_training.py`.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training_runs import ROOT, Run, file_name, print_table, read_results, train

# Recipe -> the name that the tables of the other studies have.
ROWS = {
    "baseline": "BN",
    "bn-two-views": "BN, two views",
    "sbn": "BN + SBN",
    "cbn": "CBN",
    "cbn-sbn": "CBN + SBN",
    "cbn-sbn-dpl": "CBN + SBN + DPL",
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 files, as for cbn-train")
    parser.add_argument("--experiment", default="cifar10-lt/rho100")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["baseline", "cbn", "cbn-sbn-dpl"])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's 0.05")
    parser.add_argument("--momentum", type=float, help="weight of the new statistics instead of the recipe's 0.1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    place = Path(arguments.experiment) / f"{arguments.epochs}-epochs"
    results = ROOT / "benchmarks" / "results" / "table2" / place
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is needed to train")
        settings = (f"epochs={arguments.epochs}", "schedule.evaluate_every=10", "precision=bf16")
        suffix = ""
        if arguments.learning_rate is not None:
            settings += (f"lr={arguments.learning_rate}",)
            suffix = f", lr {arguments.learning_rate}"
        if arguments.momentum is not None:
            settings += (f"norm.momentum={arguments.momentum}",)
            suffix += f", momentum {arguments.momentum}"
        runs = []
        for seed in arguments.seeds:
            for row in arguments.rows:
                variant = ROWS[row] + suffix
                name = file_name(variant, seed)
                runs.append(
                    Run(
                        variant,
                        seed,
                        f"{arguments.experiment}/{row}",
                        (*settings, f"seed={seed}"),
                        arguments.data,
                        ROOT / "runs" / "table2" / place / name,
                        results / f"{name}.json",
                    )
                )
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for line in pool.map(train, runs):
                print(line, flush=True)
    finished = read_results(results)
    names = list(ROWS.values())
    names += sorted({row["variant"] for row in finished} - set(names))  # those with another setting
    print_table(names, finished, calibration=True)


if __name__ == "__main__":
    main()
