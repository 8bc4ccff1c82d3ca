"""``python -m harness.simulator``: one seed told as a story, or many."""

from __future__ import annotations

import argparse
import sys

from .campaign import ENOUGH_TO_SEE_ALL, run_campaign
from .options import REGISTERS, draw
from .run import run_seed


def main() -> int:
    """0 if all is well."""
    parser = argparse.ArgumentParser(prog="harness.simulator", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this one")
    what.add_argument("--seeds", help="run these: FIRST:END")
    what.add_argument("--mutants", nargs="?", const="", help="run the mutants (or one, by name)")
    parser.add_argument("--trace", action="store_true", help="tell what happens")
    parser.add_argument("--fingerprint", action="store_true", help="print nothing else")
    parser.add_argument("--register", choices=REGISTERS, default="")
    parser.add_argument("--safety-ms", type=int, default=0, help="how long there are faults")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budget-s", type=float, default=1e9)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _one(arguments)
    if arguments.mutants is not None:
        from .mutants import hunt_all

        return hunt_all(arguments.mutants, arguments.workers)
    first, _, end = arguments.seeds.partition(":")
    campaign = run_campaign(
        range(int(first), int(end)),
        workers=arguments.workers,
        budget_s=arguments.budget_s,
        register=arguments.register,
        safety_ms=arguments.safety_ms,
    )
    print(campaign)
    print("never seen:", ", ".join(campaign.missing()) or "nothing is missing")
    for seed, text in campaign.failures.items():
        print(f"FAILED {seed}: {text}")
    has_missed = campaign.runs >= ENOUGH_TO_SEE_ALL and campaign.missing()
    return 1 if campaign.failures or has_missed else 0


def _one(arguments: argparse.Namespace) -> int:
    options = draw(arguments.seed, arguments.register, arguments.safety_ms)
    result = run_seed(options, tells=arguments.trace)
    if arguments.fingerprint:
        print(result.fingerprint)
        return 0
    for line in result.lines:
        print(line)
    for what, count in sorted(result.counts.items()):
        print(f"{count:10} {what}")
    print(f"{result}\nfingerprint {result.fingerprint}, {result.events} events")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
