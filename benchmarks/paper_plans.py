"""Plans every paper-scale recipe on a list of TPU slices, and writes docs/paper_plans.md and docs/paper_plans.json.

python benchmarks/paper_plans.py
python benchmarks/paper_plans.py --recipes 'paper_stage2_*' --topologies v5e:8x8 v5p:4x4x8 --workers 4

A recipe is an experiment and its variants: paper_stage2_vitg_8b is gin/experiments/paper_stage2.gin with
ENCODER_VARIANT = "vit_g" and LARGE_VARIANT = "palm_8b". The mesh is that of gin/meshes/<type>_<chips>_stage1.gin for
stage 1 and of <type>_<chips>.gin for the others; where there is none, the recipe's own. A compilation takes some
minutes of two cores; results are cached, so that an interrupted or repeated run goes on where it was. What is not asked
for keeps its row of an earlier run. With --search_limit above 0, a recipe whose setting does not fit is searched for
one that does. Needs libtpu, no TPU.
"""

import argparse
import concurrent.futures
import fnmatch
import itertools
import json
import multiprocessing
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
TOPOLOGIES = ("v4:8x8x8", "v5e:8x8", "v5e:16x16", "v5p:4x4x8", "v6e:8x8", "tpu7x:4x4x4")

_HEAD = """# Paper-scale recipes on TPU slices

Recipes of the paper's scale, their real training steps compiled ahead of time for the slice: {about}.
`python benchmarks/paper_plans.py` makes this page; docs/planning.md explains the figures.
A recipe is an experiment and its variants: `paper_stage2_vitg_8b` is `gin/experiments/paper_stage2.gin` with
`ENCODER_VARIANT = "vit_g"` and `LARGE_VARIANT = "palm_8b"`.

Batches are of still images. The step time is the compiler's estimate; empty cells have not been compiled. {calibration}
"""


def recipes() -> dict[str, tuple[str, list[str]]]:
    """Returns the paper's recipes by name, such as `paper_stage2_vitg_8b`: (experiment, bindings of its variants)."""
    found = {}
    for encoder in ("vitb", "vitl", "vitg"):
        variant = [f"ENCODER_VARIANT='{encoder[:3]}_{encoder[3:]}'"]
        found[f"paper_stage1_{encoder}"] = ("paper_stage1", variant)
        for experiment, large in itertools.product(("paper_stage2", "paper_perceiver"), ("1b", "8b")):
            found[f"{experiment}_{encoder}_{large}"] = (experiment, [*variant, f"LARGE_VARIANT='palm_{large}'"])
    return dict(sorted(found.items()))


def mesh_file(topology: str, experiment: str) -> str | None:
    """Returns the shipped mesh of a slice for an experiment, or None."""
    from vadapter.base import resources
    from vadapter.planning.topologies import Topology

    parsed = Topology.parse(topology)
    slice_ = f"meshes/{parsed.type.name}_{parsed.num_chips}"
    names = (f"{slice_}_{experiment.removeprefix('paper_')}.gin", f"{slice_}.gin")
    return next((name for name in names if (resources.folder("gin") / name).is_file()), None)


def plan_one(recipe: str, topology: str, search_limit: int, cache_dir: str | None) -> dict[str, Any]:
    """Plans one recipe on one slice; runs in a process of its own."""
    from vadapter.planning.topologies import Topology, prepare

    prepare()  # before anything uses a device
    from vadapter.base.errors import UserError
    from vadapter.planning.search import Search
    from vadapter.recipes import experiments
    from vadapter.runs import planner

    try:
        name, variants = recipes()[recipe]
        files = [f"experiments/{name}.gin", *filter(None, [mesh_file(topology, name)])]
        experiment = experiments.unopened(files, variants)
        planned = planner.Planner(recipe, experiment, Topology.parse(topology), cache_dir=cache_dir)
        made = planned.plan()
        if not made.fits and search_limit:
            ranked = Search(planned.space(), search_limit).run(planned.start, planned.outcome)
            made = ranked[0].plan if ranked else made
        return json.loads(json.dumps(made.to_json()))
    except UserError as error:
        return {"recipe": recipe, "topology": topology, "error": str(error)}


def summary(plans: list[dict[str, Any]], topologies: list[str]) -> str:
    """Returns the table of step time and MFU, a row a recipe, a column a slice."""
    from vadapter.planning.page import Table, markdown

    def cell(recipe: str, topology: str) -> str:
        plan = next((p for p in plans if (p["recipe"], p["topology"]) == (recipe, topology)), None)
        if plan is None:
            return ""
        if "error" in plan:
            return "an error, below"
        if not plan["fits"]:
            return "does not fit"
        return f"{plan['estimate']['step_seconds']:.2f} s, {100 * plan['estimate']['mfu']:.1f}%"

    names = sorted({p["recipe"] for p in plans})
    rows = tuple((name, *(cell(name, topology) for topology in topologies)) for name in names)
    return markdown(Table("", ("step, MFU", *topologies), rows))


def page(plans: list[dict[str, Any]], topologies: list[str]) -> str:
    """Returns the page of all plans: the summary, then a table a slice."""
    from vadapter.planning import calibration
    from vadapter.planning.page import markdown, overview
    from vadapter.planning.topologies import Topology

    versions = next((p["compiled"]["versions"] for p in plans if "error" not in p), {})
    about = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [_HEAD.format(about=about, calibration=calibration.PALIGEMMA.text()), summary(plans, topologies), ""]
    for topology in topologies:
        rows = [p for p in plans if p["topology"] == topology]
        chips = Topology.parse(topology).num_chips
        parts.append(f"## {topology}, {chips} chips\n\n{markdown(overview(rows))}\n")
    return "\n".join(parts)


def _write(plans: list[dict[str, Any]], output: Path) -> None:
    rows = sorted(plans, key=lambda p: (p["recipe"], p["topology"]))
    topologies = sorted({p["topology"] for p in rows}, key=lambda t: (t not in TOPOLOGIES, t))
    output.write_text(page(rows, topologies))
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="*", metavar="PATTERN", help="of their names (default: all)")
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES), metavar="TYPE:AxB")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--search_limit", type=int, default=0, metavar="N", help="compilations for what does not fit")
    parser.add_argument("--cache_dir", metavar="DIR", help="default: as vadapter plan")
    parser.add_argument("--output", type=Path, default=DOCS / "paper_plans.md", metavar="FILE", help="and FILE.json")
    args = parser.parse_args()
    chosen = fnmatch.filter(recipes(), args.recipes)
    tasks = [(recipe, topology) for topology in args.topologies for recipe in chosen]
    data = args.output.with_suffix(".json")
    plans = {(p["recipe"], p["topology"]): p for p in (json.loads(data.read_text()) if data.is_file() else [])}
    context = multiprocessing.get_context("spawn")  # jax must not be forked
    with concurrent.futures.ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        futures = [pool.submit(plan_one, *task, args.search_limit, args.cache_dir) for task in tasks]
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            plan = future.result()
            said = plan.get("error") or ("fits" if plan["fits"] else "does not fit")
            print(f"{number} of {len(tasks)}: {plan['recipe']} on {plan['topology']}: {said}", flush=True)
            plans[plan["recipe"], plan["topology"]] = plan
            _write(list(plans.values()), args.output)
    print(f"Wrote {args.output} and {data}.")


if __name__ == "__main__":
    main()
