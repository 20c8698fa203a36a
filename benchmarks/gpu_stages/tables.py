"""Results as text: a compact table for the end of a run, and the tables of docs/performance.md."""

from typing import Any

_COLUMNS = {
    "rows": "batch",
    "median_ms": "step (ms)",
    "min_ms": "least",
    "max_ms": "most",
    "examples_per_s": "examples/s",
    "mfu_of_measured_ceiling": "MFU, measured ceiling",
    "mfu_of_published_peak": "MFU, published peak",
    "memory": "memory (GiB)",
    "compile_s": "compile (s)",
}


def summary(stages: dict[str, dict[str, Any]]) -> str:
    """Returns a line for each figure of each stage."""
    lines = []
    for name, stage in stages.items():
        lines.append(f"{name}: {stage.get('status')}, {stage.get('seconds')} s, {stage.get('device', '')}")
        for figure, entry in stage["figures"].items():
            lines.append(f"  {figure:28} {_short(entry)}")
    return "\n".join(lines)


def _short(entry: dict[str, Any]) -> str:
    if why := entry.get("skipped") or entry.get("error"):
        return f"{'skipped' if 'skipped' in entry else 'ERROR'}: {why[:200]}"
    shown = {key: value for key, value in entry.items() if not isinstance(value, dict | list)}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if key not in ("repeats", "wall_s"))


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    head = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return "\n".join([*head, *("| " + " | ".join(str(x) for x in row) + " |" for row in rows)])


def _cell(key: str, entry: dict[str, Any]) -> str:
    if key == "memory":
        value = entry.get("planned_gib", entry.get("peak_gib_allocated", ""))
        return f"{value:.1f}" if value else ""
    value = entry.get(key, "")
    if key == "compile_s":
        value = value or entry.get("first_step_s", "")
    if value == "" or key == "rows":
        return str(value)
    return f"{100 * value:.1f}%" if key.startswith("mfu") else f"{value:,.1f}"


def _steps(stage: dict[str, Any]) -> str:
    rows = []
    for name, entry in stage["figures"].items():
        if name == "parity":
            continue
        if why := entry.get("skipped") or entry.get("error"):
            rows.append([name, entry.get("rows", ""), why.splitlines()[0][:120], *[""] * (len(_COLUMNS) - 2)])
        else:
            rows.append([name, *(_cell(key, entry) for key in _COLUMNS)])
    return _table(["figure", *_COLUMNS.values()], rows)


def _plain(stage: dict[str, Any]) -> str:
    return _table(["figure", "result"], [[name, _short(entry)] for name, entry in stage["figures"].items()])


def markdown(stages: dict[str, dict[str, Any]]) -> str:
    """Returns a section for each stage."""
    parts = []
    for name, stage in stages.items():
        versions = ", ".join(f"{key} {value}" for key, value in stage.get("versions", {}).items())
        text = f"### {name}\n\n{stage.get('device', 'unknown device')}; {versions}. Ended: {stage.get('status')}."
        if parameters := stage.get("parameters"):
            text += " Parameters: " + ", ".join(f"{part} {count:,}" for part, count in parameters.items()) + "."
        if parity := stage["figures"].get("parity"):
            ratios = [f"{key} {x['ratio']}" for key, x in parity.items() if isinstance(x, dict)]
            text += f" Of ours, the peer has: {', '.join(ratios) or parity.get('error', '')}."
        steps = name.startswith(("step", "peer", "int8"))
        parts.append(f"{text}\n\n{_steps(stage) if steps else _plain(stage)}")
    return "\n\n".join(parts)
