"""The care of a store: `flatminima verify`, `clean` and `publish`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flatminima.cli._studies import study_source
from flatminima.cli._text import size
from flatminima.store import Store, StoreError
from flatminima.study.run import make_plan


def verify(folder: Path, *, recompute: bool, whole: bool, repair: bool, seed: int) -> None:
    """`flatminima verify`."""
    from flatminima.study.check import check_results, missing_results

    if repair and (recompute or whole):
        raise ValueError(
            "expected --repair without --recompute, got both; repair, run what is missing, then"
            " recompute"
        )
    store = Store(folder)
    if repair:
        _repair(store)
        return
    count, faults = store.verify()
    damaged = len(faults)
    faults += missing_results(store)
    for fault in faults:
        print(fault)
    if faults:
        cure = "; --repair takes damaged jobs out, to be computed again" if damaged else ""
        raise RuntimeError(f"{folder} is not whole: {len(faults)} faults, listed above{cure}")
    print(f"{folder}: all {count} files are as they were recorded")
    if recompute or whole:
        disagreements = 0
        for line, agrees in check_results(store, seed=seed, whole=whole):
            print(line if agrees else f"DISAGREES: {line}", flush=True)
            disagreements += not agrees
        if disagreements:
            raise RuntimeError(f"{disagreements} of the recomputed results disagree with {folder}")
        print(f"{folder}: everything that was recomputed agrees")


def _repair(store: Store) -> None:
    """Take out what is damaged, and say what to do then."""
    from flatminima.study.check import missing_results, repair

    done = repair(store)
    for line in done:
        print(line)
    count, faults = store.verify()
    missing = missing_results(store)
    for line in missing:
        print(line)
    faults += [line for line in missing if "manifest.json" in line]
    if faults:
        raise RuntimeError(f"{store.root} is still not whole: {faults[0]}")
    print(f"{store.root}: {count} files are as they were recorded")
    if done:
        print(
            "To compute what is missing, run the studies again. What was made of it stays: jobs"
            " compare what they read with its digest."
        )


def clean(studies: Sequence[str], *, out: Path, delete: bool, own: bool) -> None:
    """`flatminima clean`."""
    from flatminima.study.clean import WHAT, Cleaning, plan_cleaning
    from flatminima.study.clean import clean as remove

    store = Store(out)

    def look() -> Cleaning:
        sources = [study_source(study, out) for study in studies]
        plans = [make_plan(source, out=out, create=False) for source in sources]
        return plan_cleaning(store, plans, own=own)

    found = look()
    for what in WHAT:
        items = [item for item in found.items if item.what == what]
        if items:
            names = [item.path.name for item in items]
            if what == "jobs":
                kinds = Counter(name.rpartition("-")[0] for name in names)
                said = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
            elif what in ("studies", "reports"):
                said = ", ".join(names)
            else:
                said = str(len(names))
            print(f"  {what:9} {said}, {size(sum(item.size for item in items))}")
    spared = f"; {found.own} more of own networks stay, --own lets them go" if found.own else ""
    print(f"  kept      {found.kept - found.own} jobs{spared}")
    if not found.items:
        print(f"{out}: nothing to remove")
    elif not delete:
        print(f"{out}: {size(found.size)} would go; --delete removes them")
    else:
        with store.lock():  # which clears tmp
            remove(store, look())
        print(f"{out}: {size(found.size)} removed")


def publish(study: str, folder: Path, *, out: Path, weights: bool) -> None:
    """`flatminima publish`."""
    from flatminima.study.check import copy_results

    plan = make_plan(study, out=out, create=False)
    if plan.todo:
        raise StoreError(
            f"expected {plan.study.name} to be finished in {out}, got {len(plan.todo)} jobs left;"
            " run it first"
        )
    count = copy_results(plan.store, plan.study.name, folder, weights=weights)
    print(f"{plan.study.name}: {count} results are in {folder}")
