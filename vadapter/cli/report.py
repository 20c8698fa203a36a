"""Writes one self-contained HTML file about training runs: loss curves, a table of results, a gallery of predictions.

vadapter report runs/perceiver runs/queries --baseline=perceiver

Of the folder of a sweep (`vadapter sweep`) it is about the arms: chosen settings, intervals over seeds, differences.
"""

import argparse

from vadapter.base import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "model_dirs", nargs="+", metavar="MODEL_DIR", help="folder of a run, or of one sweep, finished or not"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="folder name of the run, or arm, that the others are compared with"
    )
    parser.add_argument("--title", help="heading of the report (default: made of the names)")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the HTML file (default: %(default)s)")
    parser.add_argument("--results", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--picture", metavar="FILE", help="also write the curves and some examples as one SVG picture")
    parser.add_argument(
        "--max_examples", type=int, default=24, metavar="N", help="examples in the gallery (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Reads the runs and writes the files."""
    import json
    from pathlib import Path

    from vadapter.reports import comparison, picture
    from vadapter.reports.files import comparison_of_runs
    from vadapter.reports.sweep_data import is_sweep

    if any(is_sweep(folder) for folder in args.model_dirs):
        return _report_sweep(args)
    content = comparison_of_runs(args.model_dirs, baseline=args.baseline, title=args.title)
    comparison.write(content, args.output, max_examples=args.max_examples)
    written = [args.output]
    if args.results:
        Path(args.results).parent.mkdir(parents=True, exist_ok=True)
        Path(args.results).write_text(json.dumps(comparison.results_json(content), indent=2) + "\n")
        written.append(args.results)
    if args.picture:
        picture.write_picture(content, args.picture)
        written.append(args.picture)
    print(terminal.line(f"Wrote {', '.join(written)}."))


def _report_sweep(args: argparse.Namespace) -> None:
    from vadapter.base.errors import UserError
    from vadapter.reports import sweep

    if len(args.model_dirs) > 1 or args.picture:
        raise UserError(
            f"{', '.join(args.model_dirs)} has the folder of a sweep, whose page is about it alone and has no picture. "
            "Give one sweep without --picture, or the folders of runs: SWEEP/ARM/SETTING/seedN."
        )
    sweep.write(args.model_dirs[0], args.output, baseline=args.baseline, title=args.title, results=args.results or None)
    print(terminal.line(f"Wrote {', '.join([args.output, *([args.results] if args.results else [])])}."))
