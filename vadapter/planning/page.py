"""A plan for people: the same tables in the terminal, as HTML and as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vadapter.base import pages
from vadapter.planning import calibration
from vadapter.planning.estimate import METHOD
from vadapter.planning.plans import Plan, advice, gib
from vadapter.planning.search import Search, said
from vadapter.planning.topologies import Topology

_GIB, _MIB = 2**30, 2**20
_KINDS = {
    "matmul": "matrix products",
    "other": "other operations",
    "kernels": "hand-written kernels",
    "copies": "copies within memory",
    "collectives": "waiting for other devices",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a heading. Cells are text; the first `left` columns are words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1


def summary(plan: Plan) -> str:
    """Returns what matters most, as one paragraph."""
    chips = Topology(plan.topology, plan.slices).num_chips
    where = plan.topology + (f", {plan.slices} slices" if plan.slices > 1 else "")
    head = f"{plan.recipe} on {where} ({chips} chips), batches of {plan.work.rows:,} {plan.media}"
    memory = plan.compiled.memory
    if plan.estimate is None:
        missing = f"a device needs {gib(memory.peak)} and has {gib(memory.limit)}: {gib(plan.excess_bytes)} are missing"
        return f"{head}: does not fit, {missing}."
    e = plan.estimate
    decode = plan.decode
    too_large = decode is not None and not decode.compiled.fits
    also = "; the generation of text does not fit" if too_large else ""
    return (
        f"{head}: fits, {gib(memory.peak)} of {gib(memory.limit)} a device{also}. A step takes {e.step_seconds:.3f} s "
        f"by the compiler's estimate ({e.calibrated_seconds:.3f} s calibrated), MFU {100 * e.mfu:.1f}% "
        f"({100 * e.calibrated_mfu:.1f}%)."
    )


def tables(plan: Plan) -> list[Table]:
    """Returns all tables of a plan."""
    found = [_parts(plan), _memory(plan)]
    if plan.estimate is not None:
        found += [_run(plan), _time(plan), _flops(plan), _collectives(plan)]
    if not plan.compiled.fits:
        found.append(_largest(plan))
    if plan.decode is not None:
        found.append(_decode(plan))
    return found


def notes(plan: Plan) -> list[str]:
    """Returns how the figures came about, and what would help if the step does not fit."""
    tpu = Topology(plan.topology).type
    found = []
    if not plan.compiled.fits:
        found.append(f"What would help: {'; '.join(advice(plan))}.")
    if plan.compiled.unknown_loops:
        found.append(
            f"{plan.compiled.unknown_loops} loops run as often as the data say; one pass of each is in the step's time."
        )
    if plan.compiled.unknown_kernels:
        found.append(
            f"How much {plan.compiled.unknown_kernels} hand-written kernels compute is not known: only what they read "
            "and write is in the step's time, which is too short so. Give their pl.pallas_call a cost_estimate."
        )
    found += [METHOD, calibration.PALIGEMMA.text()]
    if published := calibration.published_for(tpu.name):
        rows = (f"{p.name} on {p.chips} chips {100 * p.mfu:.0f}% ({p.source})" for p in published)
        found.append(f"MFU that was measured in full training on {tpu.label}: {'; '.join(rows)}.")
    versions = ", ".join(f"{name} {version}" for name, version in plan.compiled.versions.items())
    found.append(f"Compiled with {versions} in {plan.compiled.compile_seconds:.0f} s; setting: {plan.setting.text()}.")
    return found


def _parts(plan: Plan) -> Table:
    rows = [
        (
            p.name,
            "trained" if p.trained else "frozen",
            p.dtype,
            f"{p.parameters / 1e6:,.1f}",
            _gib(p.weight_bytes),
            _gib(p.optimizer_bytes),
        )
        for p in plan.parts
    ]
    totals = [sum(getattr(p, f) for p in plan.parts) for f in ("parameters", "weight_bytes", "optimizer_bytes")]
    rows.append(("all", "", "", f"{totals[0] / 1e6:,.1f}", _gib(totals[1]), _gib(totals[2])))
    columns = ("part", "", "dtype", "parameters (millions)", "weights (GiB)", "optimizer (GiB)")
    return Table("Parameters", columns, tuple(rows), "Whole arrays, before they are shared between devices.", left=3)


def _memory(plan: Plan) -> Table:
    m = plan.compiled.memory
    rows = (
        ("arguments: weights, optimizer, batch", _gib(m.arguments)),
        ("outputs that need memory of their own", _gib(max(0, m.outputs - m.aliased))),
        ("temporaries", _gib(m.temporaries)),
        ("program", _gib(m.code)),
        ("needed at the peak", _gib(m.peak)),
        ("limit", _gib(m.limit)),
        ("left" if m.fits else "missing", _gib(abs(m.limit - m.peak))),
    )
    return Table("Memory of a device", ("", "GiB"), rows)


def _run(plan: Plan) -> Table:
    e = plan.estimate
    assert e is not None
    rows = [
        ("a step (s)", _number(e.step_seconds), _number(e.calibrated_seconds)),
        ("MFU (%)", f"{100 * e.mfu:.1f}", f"{100 * e.calibrated_mfu:.1f}"),
        (
            "tokens/s/chip",
            f"{e.tokens_per_s_per_chip:,.0f}",
            f"{e.calibrated_tokens_per_s_per_chip:,.0f}",
        ),
        (f"{plan.work.steps:,} steps (hours)", _number(e.hours), _number(e.calibrated_hours)),
    ]
    if e.cost_usd is not None and e.calibrated_cost_usd is not None:
        name = f"cost of the run (USD, at {plan.price:g} USD a chip and hour)"
        rows.append((name, f"{e.cost_usd:,.0f}", f"{e.calibrated_cost_usd:,.0f}"))
    note = (
        "MFU: useful FLOPs, counted frozen-aware, over the peak of all chips. Tokens: those of the decoder, no padding."
    )
    return Table("Speed and cost", ("", "compiler's estimate", "calibrated"), tuple(rows), note)


def _time(plan: Plan) -> Table:
    e = plan.estimate
    assert e is not None
    rows = [
        (_KINDS.get(kind, kind), _ms(seconds), f"{100 * seconds / e.step_seconds if e.step_seconds else 0:.1f}")
        for kind, seconds in e.by_kind.items()
    ]
    rows += [
        ("least for computing (compiled FLOPs at the peak)", _ms(e.compute_seconds), ""),
        ("least for memory (all bytes at full bandwidth)", _ms(e.memory_seconds), ""),
        ("least for communication (all links at full bandwidth)", _ms(e.communication_seconds), ""),
    ]
    return Table("Where a step's time goes", ("", "ms", "% of the step"), tuple(rows), "By the compiler's estimate.")


def _flops(plan: Plan) -> Table:
    work = plan.work
    compiled = plan.compiled.flops * Topology(plan.topology, plan.slices).num_devices
    rows = [(part, _number(flops / 1e12)) for part, flops in sorted(work.useful_flops.items())]
    rows.append(("useful, all parts", _number(work.total_flops / 1e12)))
    rows.append(("as compiled, with recomputation", _number(compiled / 1e12)))
    return Table("FLOPs of a step, all chips", ("", "TFLOP"), tuple(rows))


def _collectives(plan: Plan) -> Table:
    clock = Topology(plan.topology).type.clock_hz
    rows = tuple(
        (
            c.kind,
            ", ".join(c.axes) or "other groups",
            "in a scan" if c.in_loop else "once",
            f"{c.count:,}",
            _number(c.bytes / _MIB),
            _ms(c.cycles / clock),
            _ms(c.exposed_cycles / clock),
        )
        for c in plan.compiled.collectives
    )
    columns = ("kind", "mesh axes", "", "times a step", "sent by a device (MiB)", "ms", "of these not hidden (ms)")
    return Table("Communication", columns, rows, left=3)


def _largest(plan: Plan) -> Table:
    rows = tuple((t.source or "unknown", t.op, t.shape, f"{t.bytes / _MIB:,.1f}") for t in plan.compiled.largest)
    return Table("Largest temporaries of a device", ("source", "operation", "shape", "MiB"), rows, left=3)


def _decode(plan: Plan) -> Table:
    d = plan.decode
    assert d is not None
    m = d.compiled.memory
    rows = [
        ("prompts at once", f"{d.rows:,}"),
        ("new tokens at most", f"{d.new_tokens:,}"),
        ("arguments (GiB a device)", _gib(m.arguments)),
        ("temporaries with the cache of keys and values (GiB a device)", _gib(m.temporaries)),
        ("needed at the peak (GiB a device)", _gib(m.peak)),
        ("limit (GiB a device)", _gib(m.limit)),
    ]
    if m.fits:
        seconds = d.compiled.cycles.total / Topology(plan.topology).type.clock_hz
        rows.append(("all prompts, if none ends early (s, compiler's estimate)", f"{seconds:.3f}"))
    return Table(f"Generation of text, {d.method}", ("", "fits" if m.fits else "does not fit"), tuple(rows))


def ranking(search: Search) -> Table:
    """Returns the settings that a search compiled, the best first."""
    rows = []
    for o in search.ranked():
        s, e = o.setting, o.plan.estimate if o.plan else None
        speed = (f"{e.step_seconds:.3f}", f"{e.calibrated_seconds:.3f}", f"{100 * e.mfu:.1f}") if e else ("", "", "")
        rows.append(
            (
                f"{s.data} x {s.fsdp} x {s.tensor}",
                said(s.remat),
                said(s.attention),
                str(s.accumulate),
                "yes" if o.fits else "no",
                f"{o.peak_bytes / _GIB:.2f}",
                *speed,
            )
        )
    columns = ("data x fsdp x tensor", "remat", "attention", "micro-batches", "fits")
    columns += ("HBM a device (GiB)", "step (s)", "step, calibrated (s)", "MFU (%)")
    note = f"{search.ended} {len(search.refused)} settings were ruled out without compiling them."
    return Table("Search", columns, tuple(rows), note, left=3)


def overview(plans: Sequence[Mapping[str, Any]]) -> Table:
    """Returns one row a plan.

    Args:
        plans: as `Plan.to_json` makes them; or {"recipe": ..., "error": ...} of what could not be compiled.
    """
    columns = ("recipe", "data x fsdp x tensor", "micro-batches", "trained (millions)", "HBM a device (GiB)", "fits")
    columns += ("step (s)", "step, calibrated (s)", "MFU (%)", "MFU, calibrated (%)", "tokens/s/chip", "steps")
    columns += ("hours, calibrated",)
    rows = []
    for plan in plans:
        if "error" in plan:
            rows.append((plan["recipe"], plan["error"], *[""] * (len(columns) - 2)))
            continue
        s, e, memory = plan["setting"], plan["estimate"], plan["compiled"]["memory"]
        trained = sum(part["parameters"] for part in plan["parts"] if part["trained"])
        speed = [""] * 5
        if e:
            times, rates = (e["step_seconds"], e["calibrated_seconds"]), (e["mfu"], e["calibrated_mfu"])
            speed = [*(f"{t:.2f}" for t in times), *(f"{100 * r:.1f}" for r in rates)]
            speed.append(f"{e['tokens_per_s_per_chip']:,.0f}")
        rows.append(
            (
                plan["recipe"],
                f"{s['data']} x {s['fsdp']} x {s['tensor']}",
                str(s["accumulate"]),
                f"{trained / 1e6:,.0f}",
                f"{memory['peak'] / _GIB:.2f}",
                "yes" if plan["fits"] else "no",
                *speed,
                f"{plan['work']['steps']:,}",
                f"{e['calibrated_hours']:,.0f}" if e else "",
            )
        )
    return Table("", columns, tuple(rows), left=2)


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _number(x: float) -> str:
    """Three digits that count, or more before the point."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.1f}" if abs(x) >= 10 or x == 0 else f"{x:.3g}"


def show(paragraphs: Sequence[str], shown: Sequence[Table]) -> None:
    """Prints paragraphs and tables to the terminal; without colours and at full width where it is none."""
    import sys

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for table in shown:
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold", caption=table.note or None)
        drawn.caption_justify = "left"
        for i, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if i < table.left else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
        console.print()
    for paragraph in paragraphs:
        console.print(Text(paragraph))


def markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    marks = ["---" if i < table.left else "---:" for i in range(len(table.columns))]
    rows = [table.columns, tuple(marks), *table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def html(title: str, lead: str, shown: Sequence[Table], paragraphs: Sequence[str], plan: Plan | None = None) -> str:
    """Returns one self-contained page.

    Args:
        title: heading.
        lead: what matters most.
        shown: tables.
        paragraphs: notes under them.
        plan: whose memory and time are drawn as bars; None draws none.
    """
    content = {"title": title, "lead": lead, "tables": shown, "notes": paragraphs, "bars": bars(plan) if plan else []}
    return pages.render(Path(__file__).parent / "templates" / "plan.html.j2", content)


def bars(plan: Plan) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Returns stacked bars: (heading, [(name, amount as text, percent of the bar)])."""
    m = plan.compiled.memory
    pieces = {
        "arguments": m.arguments,
        "temporaries": max(0, m.peak - m.arguments - m.code),
        "program": m.code,
        "left": max(0, m.limit - m.peak),
    }
    found = [_bar(f"Memory of a device: {gib(m.peak)} of {gib(m.limit)}", pieces, gib)]
    if plan.estimate is not None:
        times = {_KINDS.get(kind, kind): seconds for kind, seconds in plan.estimate.by_kind.items()}
        found.append(_bar("A step's time", times, lambda x: f"{_ms(x)} ms"))
    return found


def _bar(heading, pieces, text) -> tuple[str, list[tuple[str, str, float]]]:
    total = sum(pieces.values()) or 1
    return heading, [(name, text(x), 100 * x / total) for name, x in pieces.items() if x > 0]
