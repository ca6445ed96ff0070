"""What a sweep leaves: table.md, table.csv, table.json and figures, from its experiments' results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.evaluation.aggregate import is_known, outcomes_of_subjects
from fusionkit.evaluation.compare import Repetition, Row, compare, judge_row, row_entry
from fusionkit.evaluation.figures import draw_curves, draw_roc, draw_rows
from fusionkit.evaluation.measures import Measures, measures_of
from fusionkit.evaluation.metrics import LABELS
from fusionkit.evaluation.report import LEAKAGE, SIMULATED
from fusionkit.evaluation.roc import roc_curve
from fusionkit.learned import json_bytes
from fusionkit.recipe.load import dump_yaml
from fusionkit.recipe.schema import missing_name
from fusionkit.recipe.sweep import LoadedSweep, SweepExperiment, VariantNode, models_of
from fusionkit.registry import Registry
from fusionkit.run import write_environment
from fusionkit.run_folder import hidden_until_whole, make_run_folder, point_latest
from fusionkit.store import write_atomic
from fusionkit.sweep import Experiments
from fusionkit.sweep_tables import row_name, table_csv, table_markdown
from fusionkit.tasks import make_task

NO_CURVE = 0.0
"""The only rate of a sweep without `curve`: nothing is blanked."""


@dataclass(frozen=True)
class SweepTable:
    """A sweep's table.

    Args:
        entry: All of it as JSON values.
        figures: File name -> PNG.
    """

    entry: Mapping[str, Any]
    figures: Mapping[str, bytes]


def experiment_label(one: SweepExperiment, loaded: LoadedSweep) -> str:
    """Returns an experiment's label: the variant's name, and the seed where there are several."""
    return f"{one.variant.name}, seed {one.seed}" if len(loaded.sweep.seeds) > 1 else one.variant.name


def build_table(loaded: LoadedSweep, done: Experiments) -> SweepTable:
    """Compares what the experiments predict; a variant without result is named with its reason."""
    sweep = loaded.sweep
    failed = {
        one.variant.name: list(error.problems)
        for one in loaded.experiments
        if (error := done.failures.get(experiment_label(one, loaded))) is not None
    }
    variants = [variant for variant in sweep.variants if variant.name not in failed]
    results = list(done.results.values())
    rates = _rates(loaded) if sweep.curve is not None else [NO_CURVE]
    compared = {rate: _compare(loaded, done, variants, rate) for rate in rates}
    rows = [
        _entry(row, variant, rate if sweep.curve is not None else None, unit=_unit(loaded, variant))
        for variant in variants
        for rate, found in compared.items()
        for row in found
        if row.name == variant.name
    ]
    evaluation, measures = loaded.experiments[0].loaded.recipe.evaluation, _measures(loaded)
    is_simulated = any(result.is_simulated for result in results)
    warnings = [SIMULATED] if is_simulated else []
    leaking = list(dict.fromkeys(row["name"] for row in rows if row["unit"] == "sample"))
    warnings += [f"{LEAKAGE} Rows: {', '.join(leaking)}."] if leaking else []
    warnings += _few_subjects(loaded, done, variants) + _notes(loaded, rows, failed)
    warnings += dict.fromkeys(text for result in results for text in result.warnings)
    return SweepTable(
        {
            "sweep": sweep.name,
            "description": sweep.description,
            "simulated": is_simulated,
            "metric": loaded.metric,
            "reference": sweep.reference,
            "references": sweep.references(),
            "curve": sweep.curve,
            "seeds": list(sweep.seeds) or sorted({one.seed for one in loaded.experiments}),
            "overrides": list(loaded.overrides),
            "task": measures.kind,
            "classes": list(measures.classes),
            "interval": evaluation.interval,
            "resamples": evaluation.resamples,
            "rows": rows,
            "failed": failed,
            "warnings": warnings,
        },
        _draw(loaded, done, variants, rows, is_simulated=is_simulated),
    )


def _measures(loaded: LoadedSweep) -> Measures:
    """Returns how the sweep's one task is judged."""
    first = loaded.experiments[0].loaded
    return measures_of(make_task(first.recipe.task, first.source.classes))


def _unit(loaded: LoadedSweep, variant: VariantNode) -> str:
    """Returns what a variant's split keeps apart: subject, or sample, which is leakage."""
    recipe = next(one.loaded.recipe for one in loaded.experiments if one.variant is variant)
    return str(getattr(recipe.split, "unit", "subject"))


def _few_subjects(loaded: LoadedSweep, done: Experiments, variants: Sequence[VariantNode]) -> list[str]:
    """Returns a run's warning of few subjects, for the row with the fewest."""
    counts, measures = [], _measures(loaded)
    for variant in variants:
        repetitions = _repetitions(loaded, done, variant, NO_CURVE)
        tested = sorted({s for one in repetitions for fold in one.folds for s in fold.test.subjects})
        shape = repetitions[0].folds[0].test.outcomes.shape[1:]
        outcomes = outcomes_of_subjects(tested, repetitions[0].outcomes, shape)
        counts.append(measures.counts(outcomes[is_known(outcomes)]))
    return measures.few(min(counts, key=lambda found: min(found.values()))) if counts else []


def _notes(loaded: LoadedSweep, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, Any]) -> list[str]:
    """Says where a comparison is lacking, and where it is not of all that a row tested."""
    wanted = loaded.sweep.references()
    lacking = sorted({other for name, other in wanted.items() if other in failed and name not in failed})
    notes = [f"Nothing is compared with {other}, which failed." for other in lacking]
    sources = {
        t.variant.name: (t.loaded.source_plan.use, t.loaded.source_plan.options) for t in loaded.experiments
    }
    for row in rows:
        difference = row["difference"]
        if difference is None:
            continue
        reference = difference["reference"]
        if difference["n_subjects"] < row["n_subjects"]:
            notes.append(
                f"{row['name']}: compared with {reference} on {difference['n_subjects']} common subjects, "
                f"and tested on {row['n_subjects']}."
            )
        if sources[row["name"]] != sources[reference]:
            notes.append(
                f"{row['name']}: its source has other options than that of {reference}; subjects of one id "
                "are taken for the same."
            )
    return list(dict.fromkeys(notes))


def _rates(loaded: LoadedSweep) -> list[float]:
    """Returns the rates that every variant of a curve is tested at, nothing blanked first."""
    curve = str(loaded.sweep.curve)
    rates = [set(one.loaded.recipe.evaluation.missing.get(curve, ())) for one in loaded.experiments]
    return [NO_CURVE, *sorted(set.intersection(*rates) - {NO_CURVE})]


def _model(loaded: LoadedSweep, one: SweepExperiment, rate: float) -> str:
    model = one.variant.model or models_of(one.loaded)[0]
    return model if rate == NO_CURVE else missing_name(model, str(loaded.sweep.curve), rate)


def _repetitions(
    loaded: LoadedSweep, done: Experiments, variant: VariantNode, rate: float
) -> list[Repetition]:
    found = []
    for one in loaded.experiments:
        if one.variant is variant:
            result = done.results[experiment_label(one, loaded)]
            folds = result.predictions[_model(loaded, one, rate)]
            evaluation = one.loaded.recipe.evaluation
            draws = 1 if rate == NO_CURVE else evaluation.missing_draws
            found.append(Repetition(folds, result.outcomes, evaluation, draws))
    return found


def _compare(
    loaded: LoadedSweep, done: Experiments, variants: Sequence[VariantNode], rate: float
) -> list[Row]:
    evaluation = loaded.experiments[0].loaded.recipe.evaluation
    return compare(
        {variant.name: _repetitions(loaded, done, variant, rate) for variant in variants},
        _measures(loaded),
        loaded.metric,
        loaded.sweep.references(),
        resamples=evaluation.resamples,
        interval=evaluation.interval,
        seed=loaded.experiments[0].loaded.recipe.seed,
    )


def _entry(row: Row, variant: VariantNode, rate: float | None, *, unit: str) -> dict[str, Any]:
    entry = row_entry(row)
    more = {"unit": unit} if rate is None else {"unit": unit, "missing": rate}
    return {"name": entry.pop("name"), **more, "model": variant.model, "paper": dict(variant.paper), **entry}


def _draw(
    loaded: LoadedSweep,
    done: Experiments,
    variants: Sequence[VariantNode],
    rows: Sequence[Mapping[str, Any]],
    *,
    is_simulated: bool,
) -> dict[str, bytes]:
    sweep = loaded.sweep
    shown = {row["name"]: row_name(row) for row in rows}
    metric, measures = loaded.metric, _measures(loaded)
    title = f"{sweep.name}: {LABELS[metric]} by subject" + (" (SIMULATED DATA)" if is_simulated else "")
    if sweep.curve is not None:
        curves = {
            shown[variant.name]: [
                (row["missing"], row["subject"][metric]) for row in rows if row["name"] == variant.name
            ]
            for variant in variants
        }
        figures = {"figure.png": draw_curves(curves, metric, f"share of {sweep.curve} blanked", title)}
    else:
        named = [{**row, "name": row_name(row)} for row in rows]
        figures = {"figure.png": draw_rows(named, metric, title)}
    if sweep.roc and len(measures.classes) == 2:
        judged = {
            shown[each.name]: judge_row(_repetitions(loaded, done, each, NO_CURVE), measures)
            for each in variants
        }
        evaluation = loaded.experiments[0].loaded.recipe.evaluation
        found = {
            name: roc_curve(folds, resamples=evaluation.resamples, interval=evaluation.interval)
            for name, folds in judged.items()
        }
        known = {name: curve for name, curve in found.items() if curve is not None}
        if known:
            figures["roc.png"] = draw_roc(known, title.replace(LABELS[metric], "ROC"))
    return figures


def check_writable(runs: Path, name: str) -> None:
    """Raises ResourceError at once where a sweep's folder could not be written."""
    make_run_folder(runs, name).rmdir()


def write_sweep(runs: Path, loaded: LoadedSweep, table: SweepTable, registry: Registry) -> Path:
    """Writes all that a sweep leaves into a folder, which has its name when it is whole; returns it."""
    folder = make_run_folder(runs, loaded.sweep.name)
    with hidden_until_whole(folder) as unfinished:
        write_atomic(unfinished / "sweep.yaml", loaded.text.encode())
        for number, one in enumerate(loaded.experiments, 1):
            words = re.sub(r"[^a-z0-9]+", "_", experiment_label(one, loaded).lower()).strip("_")[:60]
            path = unfinished / "recipes" / f"{number:03}_{words}.yaml"
            write_atomic(path, dump_yaml(one.loaded.resolved).encode())
        write_environment(unfinished, loaded.experiments[0].loaded, registry)
        write_table(unfinished, table)
    point_latest(folder)
    return folder


def write_table(folder: Path, table: SweepTable) -> None:
    """Writes table.json, table.csv, table.md and the figures into a folder."""
    write_atomic(folder / "table.json", json_bytes(table.entry))
    write_atomic(folder / "table.csv", table_csv(table.entry).encode())
    for name, image in table.figures.items():
        write_atomic(folder / name, image)
    write_atomic(folder / "table.md", table_markdown(table.entry).encode())
