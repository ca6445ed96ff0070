"""What the tests of generated bad input share: the oracle, and the strategies that make recipes."""

# ruff: noqa: E501 (a list of odd things is read by line)

from __future__ import annotations

import csv
import io
import json
import re
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import toys
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from fusionkit.data.manifest import Manifest
from fusionkit.errors import FusionkitError, ResourceError
from fusionkit.recipe import dialect
from fusionkit.recipe.json_schema import recipe_schema
from fusionkit.recipe.load import dump_yaml
from fusionkit.registry import Registry

ROOT = Path(__file__).parent.parent
TreePath = tuple[str | int, ...]
LONGEST = 600
INTERNALS = (
    "Traceback",
    " object at 0x",
    "pydantic",
    "input_value",
    "<class",
    "fails to build",
    "fails to check",
)
GIB = 1 << 30


def bounded(n_examples: int, seconds: float | None = None) -> settings:
    """Returns settings under which every run sees the same examples; `seconds` is the most that one takes."""
    return settings(
        max_examples=n_examples,
        derandomize=True,
        database=None,
        deadline=None if seconds is None else seconds * 1000,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


# the oracle


def flaws(problem: str) -> list[str]:
    """Returns what is wrong with a message: the house writes `where: what is wrong (given). What to do.`"""
    found = {
        "more than one line, or what no terminal shows": not problem.isprintable(),
        "no place": ": " not in problem and not re.fullmatch(r"and \d+ more \w+\.", problem),
        "no full stop": not problem.endswith(".") or re.search(r"(?<!\.)\.\.$", problem) is not None,
        "too long": len(problem) > LONGEST,
        "internals": any(word in problem for word in INTERNALS),
    }
    return [flaw for flaw, is_there in found.items() if is_there]


def answer(call: Callable[[], Any], *exit_codes: int) -> Any:
    """Returns a result or a FusionkitError with one of the exit codes; anything else fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = _outcome(call)
    if isinstance(given, FusionkitError):
        problems = given.problems
        assert given.exit_code in exit_codes, (type(given).__name__, problems)
        assert 1 <= len(problems) <= 200, f"{len(problems)} problems at once"
        wrong = {problem: flaws(problem) for problem in problems if flaws(problem)}
        assert not wrong, wrong
    return given


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except FusionkitError as error:
        return error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        return ResourceError("memory: it is full. Ask for less.")  # as the command line says it


@contextmanager
def bounded_memory(more: int = 2 * GIB) -> Iterator[None]:
    """Refuses this process more than so many bytes beyond what it has, so that an absurd size is noticed."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# recipes


def plain(tree: Any) -> Any:
    """Returns a tree as plain lists and mappings."""
    return json.loads(json.dumps(tree))


SMALL_TABLE = "\n".join(
    ["patient,picture,age,side,signs,outcome"]
    + [
        f"p{row // 2},{row:02}.png,{30 + row},{'left' if row % 2 else 'right'},{'red&hot' if row % 3 else 'hot'},"
        f"{'bad' if row // 2 % 2 else 'good'}"
        for row in range(24)
    ]
)
SMALL = """\
name: small
source:
  use: manifest
  table: rows.csv
  subject: patient
  outcome: outcome
  classes: {good: good, bad: [bad]}
  columns:
    age: {kind: numeric, range: [0, 120], missing: [unknown]}
    side: {kind: binary, values: [left, right]}
    signs: {kind: multi, values: [red, hot]}
modalities:
  record:
    columns: [age, side]
    encoder: {use: structured, missing: keep, flags: true}
    raiser: {use: dae_l1, hidden: [2x, 20], corruption: 0.2, l1: 1.0e-6}
  signs:
    columns: [signs]
    encoder: {use: structured}
    raiser: {use: copy, output: 4x}
head: {use: concat_mlp, hidden: [8, 4], dropout: 0.5}
stages:
  - name: raise_record
    fit: [record.encoder, record.raiser, signs.encoder]
    epochs: 2
    batch_size: 8
  - name: fuse
    train: [head]
    epochs: 2
    learning_rate: 3.0e-4
    schedule: cosine
    gradient_clip: 5.0
split: {scheme: folds, folds: 2, validation: 0.2}
evaluation: {resamples: 100, threshold: validation}
training: {device: cpu, precision: fp32, threads: 1}
"""
"""A recipe of bundled components that is planned in milliseconds; its table is SMALL_TABLE."""

BUNDLED = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))]
TEXTS = [SMALL, SMALL, *BUNDLED]
TREES = [plain(dialect.parse(text, str)) for text in TEXTS]
PLANNED_TREES = [plain(dialect.parse(text, str)) for text in (SMALL, toys.RECIPE)]

ODD_TEXTS = [
    "", " ", "null", "~", "yes", "1", "1e999", ".nan", "-.inf", "a: b", "- a", "#", "&a", "*a", "!!python/none",
    "\x00", "\x07\x1b[31m", "two\nlines", "\u202eabc", "\ufeff", "\U0001f9ec", "é", "..", "../..", "/etc/passwd",
    "con", "a" * 300, "ä" * 5000, "%s{0}$HOME", "os.system", "head", "fused", "'", '"',
    "20x", "-1x", "0x", "99999999999x", "x", "²x", "٣", "(", "[", "(?P<", "(a+)+$", "modalities.record.encoder",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 100, 999, 10**6, 10**9, 2**31, 2**63 - 1, 10**17, -(10**9), 0.0, -0.0, 0.5, 1.0, 1e-3, 1e-300,
    5e-324, 1e300, -1e300, 1.5, 1e9, 99.9,
]  # fmt: skip

OPTIONS = [
    "null", "1", "2", "5", "0.5", "1e-3", "true", "false", "copy", "ae", "dae", "toy_linear", "sgd", "adam", "sample", "subject",
    "[head]", "balanced", "{use: copy}", "{use: polynomial}", "{scheme: holdout, test: 0.3}", "{scheme: column, column: side}",
]  # fmt: skip

odd_texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | odd_texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=10,
)


def paths_of(node: Any, path: TreePath = ()) -> Iterator[TreePath]:
    """Yields the path of every node of a tree but the root."""
    if path:
        yield path
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield from paths_of(node[key], (*path, key))


def node_at(tree: Any, path: TreePath) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def make_registry() -> Registry:
    """Returns the installed components and the toys."""
    registry = Registry.discover()
    registry.add("toys", toys)
    return registry


SCHEMA = recipe_schema(make_registry())
DEFINITIONS = {"": SCHEMA, **SCHEMA["$defs"]}


def definition_of(holder: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys, with their schemas, of the definition that a mapping of a valid recipe follows."""
    for node in DEFINITIONS.values():
        known = node.get("properties", {})
        use = known.get("use", {})
        if set(holder) <= set(known) and use.get("const", holder.get("use")) == holder.get("use"):
            return dict(known)
    return {}


@st.composite
def fitting(draw: Any, node: dict[str, Any], depth: int = 0) -> Any:
    """Returns a value that a JSON Schema allows, or nearly: numbers lie at, and just beyond, their bounds."""
    if "$ref" in node:
        return draw(fitting(DEFINITIONS[node["$ref"].rpartition("/")[2]], depth))
    if "anyOf" in node or "oneOf" in node:
        return draw(fitting(draw(st.sampled_from(node.get("anyOf") or node["oneOf"])), depth))
    if "enum" in node or "const" in node:
        return draw(st.sampled_from(node.get("enum") or [node["const"]]))
    kind = node.get("type")
    if kind in ("integer", "number"):
        least = node.get("minimum", node.get("exclusiveMinimum", -3))
        most = node.get("maximum", node.get("exclusiveMaximum", 10**9))
        near = [least, least + 1, least + 2, least + 4, most, most + 1, least - 1]
        return draw(st.sampled_from(near + ([least + 0.5, (least + most) / 2] if kind == "number" else [])))
    if kind == "array":
        items = node.get("items", {})
        if isinstance(items, list):
            return [draw(fitting(item, depth + 1)) for item in items]
        return [draw(fitting(items, depth + 1)) for _ in range(draw(st.integers(0, 3)))]
    if kind == "object" and depth < 4:
        keys = node.get("properties", {})
        return {key: draw(fitting(keys[key], depth + 1)) for key in keys if draw(st.booleans())}
    plain_kinds = {
        "boolean": st.booleans(),
        "null": st.none(),
        "string": st.sampled_from(["age", "side", "1x", "a"]),
    }
    return draw(plain_kinds.get(str(kind), values))


def fitting_change(draw: Any, tree: Any) -> tuple[TreePath, Any]:
    """Returns the path of a known key, written or not, and what its schema allows there, or nearly allows."""
    choices = []
    for path in [(), *paths_of(tree)]:
        holder = node_at(tree, path)
        keys = definition_of(holder) if isinstance(holder, dict) and holder else {}
        plain_keys = {key: node for key, node in keys.items() if not {"$ref", "allOf"} & set(node)}
        choices += [((*path, key), node) for key, node in plain_keys.items() if key not in ("use", "stages")]
    path, node = draw(st.sampled_from(choices or [(("seed",), {"type": "integer"})]))
    return path, draw(fitting(node))


CHANGES = ["gentle"] * 8 + ["value", "value", "number", "number", "drop", "rename", "swap", "copy", "nest"]


@st.composite
def mutated_trees(draw: Any, trees: list[Any], most: int = 4) -> Any:
    """Returns a tree with one to `most` changes, some of which leave it valid."""
    tree = plain(draw(st.sampled_from(trees)))
    for _ in range(draw(st.sampled_from([1, 1, 2, most]))):
        paths = list(paths_of(tree))
        change = draw(st.sampled_from(CHANGES))
        if change == "gentle" or not paths:
            path, value = fitting_change(draw, tree)
            node_at(tree, path[:-1])[path[-1]] = value
        else:
            change_rudely(draw, tree, draw(st.sampled_from(paths)), change)
    return tree


def change_rudely(draw: Any, tree: Any, path: TreePath, change: str) -> None:
    """Changes one node, whatever its schema says."""
    holder, key = node_at(tree, path[:-1]), path[-1]
    other = draw(st.sampled_from(list(paths_of(tree))))
    if change in ("value", "number"):
        holder[key] = draw(values if change == "value" else st.sampled_from(NUMBERS))
    elif change == "drop":
        del holder[key]
    elif change == "nest":
        for _ in range(draw(st.integers(1, 60))):
            holder[key] = [holder[key]] if draw(st.booleans()) else {"use": holder[key]}
    elif change == "swap":
        node_at(tree, other[:-1])[other[-1]], holder[key] = plain(holder[key]), plain(node_at(tree, other))
    elif isinstance(holder, list):
        holder.append(plain(holder[key]))
    elif change == "rename":
        holder[draw(odd_texts | st.just(str(other[-1])))] = holder.pop(key)
    else:
        holder[f"{key}_2"] = plain(holder[key])


FRAGMENTS = [
    *re.findall(r"[\w.]+:?|[\[\]{},:-]|\n *", SMALL)[:200],
    "\n", "  ", ": ", "- ", "? ", "| ", "> ", "&a ", "*a", "!!int ", "%YAML 1.1\n", "---\n", "...\n", "'", '"', "\t", "\r",
    "\x85", "\u2028", "\ud7ff", "<<: ", "@", "`", '"\\ud800"', '"\\x07"', '"\\0"', "0o7", "1_0", "1e400", "[" * 60,
]  # fmt: skip


@st.composite
def spoiled_texts(draw: Any) -> str:
    """Returns a recipe whose lines or characters were cut, doubled, moved or replaced."""
    lines = draw(st.sampled_from([SMALL, toys.RECIPE, *BUNDLED])).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        change = draw(st.sampled_from(["drop", "double", "indent", "cut", "insert", "move"]))
        if change == "drop" and len(lines) > 1:
            del lines[at]
        elif change == "double":
            lines.insert(at, line)
        elif change == "indent":
            lines[at] = " " * draw(st.integers(0, 6)) + line.lstrip()
        elif change == "cut":
            lines[at] = line[: draw(st.integers(0, len(line)))]
        elif change == "insert":
            place = draw(st.integers(0, len(line)))
            lines[at] = line[:place] + draw(st.sampled_from(FRAGMENTS) | odd_texts) + line[place:]
        else:
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    return "\n".join(lines)


recipe_bytes = st.one_of(
    mutated_trees(TREES).map(dump_yaml).map(lambda text: text.encode("utf-8", "replace")),
    mutated_trees(TREES).map(dump_yaml).map(lambda text: text.encode("utf-8", "replace")),
    spoiled_texts().map(lambda text: text.encode("utf-8", "replace")),
    st.lists(st.sampled_from(FRAGMENTS), max_size=60)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=300),
    st.tuples(st.sampled_from([SMALL, *BUNDLED]), st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])).map(
        lambda both: both[0].encode(both[1])
    ),
)


@st.composite
def override_lists(draw: Any) -> tuple[str, list[str]]:
    """Returns a recipe and one to three overrides of it: paths that are there, nearly there, or odd."""
    number = draw(st.integers(0, len(TEXTS) - 1))
    tree = TREES[number]
    paths = list(paths_of(tree))
    names = {index: stage["name"] for index, stage in enumerate(tree["stages"])}
    overrides = []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        path, value = fitting_change(draw, tree)
        made = json.dumps(value)
        change = draw(st.sampled_from(OVERRIDE_CHANGES))
        if change != "none":
            path = draw(st.sampled_from(paths))
            odd_values = [
                json.dumps(draw(values)),
                json.dumps(node_at(tree, path)),
                draw(st.sampled_from(OPTIONS)),
            ]
            made = draw(st.sampled_from([*odd_values, draw(odd_texts)]))
        steps = [str(names[step] if path[:depth] == ("stages",) else step) for depth, step in enumerate(path)]
        if change == "odd":
            steps[draw(st.integers(0, len(steps) - 1))] = draw(odd_texts)
        elif change == "more":
            steps.append(draw(odd_texts | st.sampled_from(["use", "epochs", "name"])))
        elif change == "less":
            steps.pop()
        equals = draw(st.sampled_from(["=", "=", "=", "=", "=", "=", " = ", "", "=="]))
        overrides.append(equals.join([".".join(steps), made]))
    return TEXTS[number], overrides


OVERRIDE_CHANGES = ["none"] * 5 + ["value", "value", "odd", "more", "less"]


# tables

TABLE_RECIPE = SMALL.replace("age: {", "picture: {kind: file}\n    age: {", 1)
"""SMALL with a column of files."""

ODD_CELLS = [
    "", " ", "nan", "NaN", "inf", "-inf", "1e999", "-0", "1,5", "0x10", "1_000", "2024-01-31", "31.12.1999", "12:00", "true",
    "NULL", "None", "#N/A", "=1+1", "a;b", "a,b", "a\tb", 'a"b', '"', "two\nlines", "cr\rhere", "\x00", "\x1a", "\x1b[2J",
    "\ufeff", "\u202e", "é", "ß", "日本", "x" * 2000, "9" * 400, "1e38", "1e39", "../../etc/passwd", "http://a/b.png", "/etc/hosts",
    "a\x00.png", "..", ".", "00.png", "left&right", "red&", "&", "good", "bad", "GOOD", "p0", "left", "right", "50", "-1",
]  # fmt: skip
NAMES = ["patient", "picture", "age", "side", "signs", "outcome"]
odd_cells = st.sampled_from(ODD_CELLS) | st.text(max_size=8)


@st.composite
def rows_of(draw: Any) -> list[list[str]]:
    """Returns a header and rows: SMALL_TABLE with odd cells, columns and rows here and there."""
    rows = [line.split(",") for line in SMALL_TABLE.splitlines()]
    rows = rows[: draw(st.sampled_from([25, 25, 25, 25, 13, 2, 1]))]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 4]))):
        if rows:
            change_rows(draw, rows, draw(st.sampled_from(ROW_CHANGES)))
    return rows


ROW_CHANGES = ["cell", "cell", "cell", "name", "ragged", "double", "column", "drop", "shuffle"]


def change_rows(draw: Any, rows: list[list[str]], change: str) -> None:
    at = draw(st.integers(0, len(rows) - 1))
    if change in ("cell", "name"):
        row = rows[at] if change == "cell" else rows[0]
        place = draw(st.integers(0, max(0, len(row) - 1)))
        row[place : place + 1] = [draw(odd_cells if change == "cell" else odd_cells | st.sampled_from(NAMES))]
    elif change == "ragged":
        rows[at][draw(st.integers(0, len(rows[at]))) :] = draw(st.lists(odd_cells, max_size=3))
    elif change == "double":
        rows.insert(at, list(rows[at]))
    elif change == "column":
        for line, cells in enumerate(rows):
            cells.append(draw(odd_cells) if line < 3 else "x")
    elif change == "drop":
        del rows[at]
    else:
        rows[1:] = draw(st.permutations(rows[1:]))


def to_csv(rows: list[list[str]], delimiter: str, newline: str, quote: Any) -> str:
    if quote == csv.QUOTE_NONE:
        return newline.join(delimiter.join(row) for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quote)
    writer.writerows(rows)
    return text.getvalue()


def spoil(draw: Any, data: bytes) -> bytes:
    """Returns bytes that are flipped, cut, doubled or spliced here and there."""
    for _ in range(draw(st.sampled_from([1, 1, 2, 5]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        to = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(["flip", "flip", "cut", "splice", "insert", "zero"]))
        if change == "flip":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif change == "cut":
            data = data[:at]
        elif change == "splice":
            data = data[:at] + data[to:]
        elif change == "insert":
            data = (
                data[:at]
                + draw(st.binary(max_size=8) | st.sampled_from([b"\x00", b'"', b"\xff\xfe", b"\n"]))
                + data[at:]
            )
        else:
            data = data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    return data


ENCODINGS = ["utf-8"] * 8 + ["utf-8-sig"] * 2 + ["utf-16", "utf-32", "latin-1", "cp1252", "cp437"]


@st.composite
def csv_files(draw: Any) -> bytes:
    """Returns a CSV file of some delimiter and encoding, sometimes with spoiled bytes; or just bytes."""
    if draw(st.sampled_from([False] * 11 + [True])):
        return draw(st.binary(max_size=300) | st.just(b"") | st.text(max_size=200).map(str.encode))
    delimiter = draw(st.sampled_from([",", ",", ",", ";", ";", "\t", "\t", "|"]))
    quote = draw(st.sampled_from([csv.QUOTE_MINIMAL] * 3 + [csv.QUOTE_ALL] * 2 + [csv.QUOTE_NONE]))
    text = to_csv(draw(rows_of()), delimiter, draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])), quote)
    data = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    return spoil(draw, data) if draw(st.sampled_from([False] * 5 + [True])) else data


DTYPES = [
    pl.String, pl.Int8, pl.UInt64, pl.Float32, pl.Float64, pl.Boolean, pl.Date, pl.Datetime("us"), pl.Datetime("ns", "UTC"),
    pl.Duration("ms"), pl.Time, pl.Binary, pl.Categorical, pl.Enum(["a", "b"]), pl.Decimal(20, 3), pl.List(pl.Int64),
    pl.Struct({"a": pl.Int64}), pl.Array(pl.Float64, 2), pl.Null,
]  # fmt: skip


@st.composite
def parquet_files(draw: Any) -> bytes:
    """Returns a Parquet file some of whose columns hold other types than text, sometimes with spoiled bytes."""
    rows = [line.split(",") for line in SMALL_TABLE.splitlines()]
    frame = pl.DataFrame({name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])})
    for name in draw(
        st.lists(st.sampled_from([*NAMES, "other", " age ", "", "a\nb", "x" * 300]), max_size=2)
    ):
        dtype = draw(st.sampled_from(DTYPES))
        cells = draw(st.lists(polars_cells(dtype), min_size=1, max_size=3))
        column = [cells[row % len(cells)] for row in range(len(frame))]
        frame = frame.with_columns(pl.Series(name, column, dtype=dtype, strict=False))
    frame = frame.head(draw(st.sampled_from([24, 24, 24, 1, 0])))
    file = io.BytesIO()
    frame.write_parquet(
        file, compression=draw(st.sampled_from(["zstd", "snappy", "uncompressed", "lz4", "gzip"]))
    )
    data = file.getvalue()
    return spoil(draw, data) if draw(st.booleans()) else data


def polars_cells(dtype: Any) -> st.SearchStrategy[Any]:
    """Returns cells that a column of a type may hold, and None."""
    whole = st.integers(0, 127)
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        pl.String: odd_cells,
        pl.Float32: st.floats(width=32),
        pl.Float64: st.floats(),
        pl.Boolean: st.booleans(),
        pl.Date: st.dates(),
        pl.Datetime: st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)),
        pl.Duration: st.timedeltas(),
        pl.Time: st.times(),
        pl.Binary: st.binary(max_size=4),
        pl.Categorical: odd_cells,
        pl.Enum: st.sampled_from(["a", "b"]),
        pl.List: st.lists(whole, max_size=2),
        pl.Struct: st.fixed_dictionaries({"a": whole}),
        pl.Array: st.lists(st.floats(), min_size=2, max_size=2),
    }
    return st.none() | kinds.get(dtype.base_type(), st.none() if dtype == pl.Null else whole)


def manifest_of(cells: pl.DataFrame) -> Manifest:
    """Returns a manifest of bare cells."""
    names = [f"row{row}" for row in range(1, len(cells) + 1)]
    return Manifest(names, names, [None] * len(cells), cells, {}, ("good", "bad"), Path())
