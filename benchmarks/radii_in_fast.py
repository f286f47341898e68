"""Are radii that a sample leads to the same, and from how many passes over the data?

    cp -r results/mnist-paper runs
    flatminima run STUDY.toml --out runs --only radii
    python benchmarks/radii_in_fast.py runs --out results/speed/mnist-paper-radii-fast.json

STUDY.toml is `studies/mnist-paper.toml` with `precision = "fast"` under `[run]`. Its radii are
those of the published networks, along the published rays, and are compared with the published ones,
ray by ray.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from flatminima.store import Store

_STUDY = "mnist-paper"
_PUBLISHED = Path(__file__).parents[1] / "results" / _STUDY
_RAY = ["group", "network", "checkpoint", "parameters", "protocol", "direction", "sign"]


def _radii(store: Store) -> xr.Dataset:
    """All rays of the study."""
    (job,) = (job for job in store.manifest(_STUDY)["jobs"] if job["kind"] == "summary")
    return store.open_payload("summary", job["digest"], "radii.zarr")


def _compared(fast: xr.Dataset, exact: xr.Dataset) -> dict[str, Any]:
    """By protocol: how often the data were passed, and how far apart radii are."""
    tables = [data.to_dataframe().reset_index() for data in (fast, exact)]
    both = tables[0].merge(tables[1], on=_RAY, suffixes=("", "_exact"), validate="one_to_one")
    if len(both) != fast.sizes["ray"] or len(both) != exact.sizes["ray"]:
        raise SystemExit("expected the same rays in both stores, got others")
    return {
        f"all parameters, {protocol}": {
            "rays": len(rays),
            "evaluations_per_ray": {
                "exact": round(float(rays["evaluations_exact"].mean()), 2),
                "fast": round(float(rays["evaluations"].mean()), 2),
                "fast, at most": int(rays["evaluations"].max()),
            },
            "radii_differ_by": float(
                f"{np.abs(rays['radius'] / rays['radius_exact'] - 1).max():.1e}"
            ),
            "other_outcomes": int((rays["outcome"] != rays["outcome_exact"]).sum()),
        }
        for protocol, rays in both[both["parameters"] == "all"].groupby("protocol")
    }


def _provenance(store: Store) -> dict[str, Any]:
    """Where and by what the radii of a sample were measured, and for how long."""
    found, seconds = [], defaultdict(float)
    for job in store.manifest(_STUDY)["jobs"]:
        if job["kind"] != "radius":
            continue
        record = store.record("radius", job["digest"])
        if record["settings"]["run"]["precision"] == "fast":
            found.append(record["provenance"])
            seconds[record["settings"]["protocol"]] += record["provenance"]["seconds"]
    last = max(found, key=lambda each: str(each["started"]))
    kept = ("commit", "dirty", "cpu", "cores", "host", "threads", "versions", "started")
    minutes = {protocol: round(total / 60, 1) for protocol, total in seconds.items()}
    return {"minutes_of_a_core": minutes, "provenance": {name: last[name] for name in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="where the radii in fast are")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    here = Store(options.store)
    fast = _radii(here)
    result = {
        **_compared(fast, _radii(Store(_PUBLISHED))),
        "samples": int(fast.attrs["sampled"]),
        "largest_difference": round(float(fast.attrs["largest_difference"]), 4),
        **_provenance(here),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
