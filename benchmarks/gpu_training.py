"""Full-length trainings on a GPU, many at once: rows of the paper's Table 2, or photographs as a folder per class.

    python benchmarks/gpu_training.py --data DIR --study table2 --rows baseline cbn cbn-sbn-dpl --seeds 0 1 2
    python benchmarks/gpu_training.py --data DIR --study recipe --rows BN CBN --seeds 0 1 2 3 4
    python benchmarks/gpu_training.py --study table2 --table

`table2` is `cbn-train cifar10-lt/rho100/ROW` (or another `--experiment`) but for what `--set` changes; other studies
are those of `photo_folders.py`. After `--seconds` the run stops at the end of an epoch, and the same command goes on
from there. Every finished training leaves a file in benchmarks/results/gpu_training/STUDY.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# A stream of its own for every training; CUDA reads it when it starts.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import photo_folders
from table2 import ROWS
from training_runs import ROOT, figures_of, file_name, print_table, read_results

from benchmarks.gpu.fleet import Group, Plan, Trainee, train_together
from cbn_deploy.data import LongTailedData, load_data, training_loader
from cbn_deploy.errors import CbnError
from cbn_deploy.machine import describe_machine
from cbn_deploy.training import apply_settings, get_recipe
from cbn_deploy.training.execution import Execution, choose_device

RESULTS = ROOT / "benchmarks" / "results" / "gpu_training"


def main() -> int:
    """Train what is missing, print the table."""
    arguments = _arguments()
    results = arguments.results / arguments.study
    if not arguments.table:
        execution = Execution(
            device=choose_device(arguments.device),
            channels_last=not arguments.channels_first,
            cuda_graphs=arguments.device == "cuda",
            device_views=arguments.study == "table2",
        )
        if not _train(arguments, execution, results):
            print("Not finished; the same command goes on.")
            return 3
    print_table(dict.fromkeys([*ROWS.values(), *photo_folders.ALL]), read_results(results))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files, as for cbn-train")
    parser.add_argument("--study", choices=["table2", *photo_folders.STUDIES], default="table2")
    parser.add_argument("--experiment", default="cifar10-lt/rho100", help="of table2 (default cifar10-lt/rho100)")
    parser.add_argument("--rows", nargs="+", default=["baseline", "cbn", "cbn-sbn-dpl"], help="recipes, or variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the seeds themselves")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for cbn-train")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--evaluate-every", type=int, default=20, metavar="EPOCHS")
    parser.add_argument("--workers", type=int, default=4, help="processes a seed that prepare batches")
    parser.add_argument("--channels-first", action="store_true", help="instead of channels last")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "gpu-training", help="where to go on from")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    if not arguments.table and arguments.data is None:
        parser.error("--data is needed to train")
    return arguments


def _train(arguments: argparse.Namespace, execution: Execution, results: Path) -> bool:
    begin = time.monotonic()
    groups = list(_groups(arguments, execution))
    for group in groups:
        group.load_test(execution.device)
    trainees = [trainee for group in groups for trainee in group.trainees]
    epochs = trainees[0].plan.recipe.schedule.epochs
    print(f"{len(trainees)} trainings of {epochs} epochs, ready after {time.monotonic() - begin:.0f} s", flush=True)
    done = train_together(groups, epochs, evaluate_every=arguments.evaluate_every, deadline=begin + arguments.seconds)
    print(f"{time.monotonic() - begin:.0f} s in all, {trainees[0].seconds:.0f} s of training", flush=True)
    if done:
        results.mkdir(parents=True, exist_ok=True)
        for group in groups:
            for trainee in group.trainees:
                _write(trainee, group, results, together=len(trainees))
    return done


def _write(trainee: Trainee, group: Group, results: Path, *, together: int) -> None:
    plan = trainee.plan
    figures = {"variant": plan.variant, "seed": plan.seed, "settings": trainee.plan.recipe.used_settings()}
    if trainee.diverged:
        figures |= {"diverged": trainee.diverged, "history": [vars(epoch) for epoch in trainee.history]}
    else:
        figures |= figures_of(trainee.report(group.test))
    machine = describe_machine(["torch", "numpy", "triton"])
    if trainee.execution.device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "trainings_at_once": together}
    figures["machine"] = machine
    (results / f"{file_name(plan.variant, plan.seed)}.json").write_text(json.dumps(figures, indent=1) + "\n")


def _groups(arguments: argparse.Namespace, execution: Execution) -> Iterator[Group]:
    for seed in arguments.seeds:
        plans = [_plan(arguments, row, seed) for row in arguments.rows]
        data = _data(arguments, plans, seed)
        trainees = []
        for plan in plans:
            state = arguments.state / arguments.study / f"{file_name(plan.variant, seed)}.pt"
            state.parent.mkdir(parents=True, exist_ok=True)
            trainees.append(Trainee(plan, data, execution, state))
        loader = training_loader(
            data,
            plans[0].recipe.views,
            batch_size=plans[0].recipe.schedule.batch_size,
            seed=seed,
            workers=arguments.workers,
            two_views=any(plan.recipe.two_views for plan in plans),
            sampling=plans[0].recipe.sampling,
            device=execution.device,
            device_views=execution.device_views,
        )
        yield Group(loader, trainees)


def _plan(arguments: argparse.Namespace, row: str, seed: int) -> Plan:
    if arguments.study == "table2":
        recipe = get_recipe(f"{arguments.experiment}/{row}")
        return Plan(ROWS[row], seed, apply_settings(recipe, [*arguments.set, f"seed={seed}"]))
    run = photo_folders.run_of(arguments.study, row, seed, Path())
    return Plan(row, seed, apply_settings(get_recipe(run.recipe), [*run.settings, *arguments.set]))


def _data(arguments: argparse.Namespace, plans: Sequence[Plan], seed: int) -> LongTailedData:
    folder = arguments.data
    if arguments.study != "table2":
        folder = photo_folders.STUDIES[arguments.study].write(arguments.data, seed)
    return load_data(plans[0].recipe.data, folder)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CbnError as error:
        sys.exit(f"Error: {error}")
