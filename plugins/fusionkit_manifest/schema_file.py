"""Reads what columns may hold from a YAML file beside the data: column -> kind, values, range, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fusionkit import ColumnSpec, DataError

_COLUMNS = TypeAdapter(dict[str, ColumnSpec])


def read_schema(path: Path) -> dict[str, ColumnSpec]:
    """Returns the columns that a YAML file declares; all is text as written, so `no` and `1` stay words.

    Raises:
        DataError: The file is not there, is no YAML, names a column twice, or declares one wrongly.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such schema file. Check `schema_file` and the data root."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the schema file cannot be read ({error}).") from None
    content, problems = _parse(text, path)
    try:
        columns = _COLUMNS.validate_python(content)
    except ValidationError as error:
        for detail in error.errors():
            place = ".".join(map(str, detail["loc"])) or "the file"
            problems.append(f"{path}: {place}: {detail['msg'].removeprefix('Value error, ')}.")
        columns = {}
    if problems:
        raise DataError(problems)
    if not columns:
        raise DataError(f"{path}: the schema file is empty. It maps each column to its kind.")
    return columns


def _parse(text: str, path: Path) -> tuple[Any, list[str]]:
    """Returns the content and the keys that are repeated; the base loader builds only texts and trees."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.BaseLoader)):
            raise DataError(f"{path}: aliases (*) are not read. Write each column out.")
        repeated = _repeated_keys(yaml.compose(text, Loader=yaml.BaseLoader), path)
        return yaml.load(text, Loader=yaml.BaseLoader), repeated
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())}).") from None


def _repeated_keys(node: yaml.Node | None, path: Path) -> list[str]:
    """Returns a problem for each key that a mapping repeats; YAML would keep the last one without a word."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for item in node.value for problem in _repeated_keys(item, path)]
    if not isinstance(node, yaml.MappingNode):
        return []
    problems = []
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            problems.append(f"{path}:{line}: '{key.value}' is declared twice. Keep one.")
        seen.add(str(key.value))
        problems += _repeated_keys(value, path)
    return problems
