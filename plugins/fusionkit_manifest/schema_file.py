"""Reads what columns may hold from a YAML file beside the data: column -> kind, values, range, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fusionkit import ColumnSpec, DataError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
_COLUMNS = TypeAdapter(dict[str, ColumnSpec])
# libyaml where PyYAML has it: the same events, several times as fast
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read_schema(path: Path) -> dict[str, ColumnSpec]:
    """Returns the columns that a YAML file declares; all is text as written, so `no` and `1` stay words.

    Raises:
        DataError: The file is not there, is no YAML, names a column twice, or declares one wrongly.
    """
    text = _read_text(path)
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


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():  # nor a device, which may have no end
            raise DataError(f"{path}: there is no such schema file. Check `schema_file` and the data root.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: the schema file cannot be read ({error.strerror}). Check it.") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB. This is no schema file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None


def _parse(text: str, path: Path) -> tuple[Any, list[str]]:
    """Returns the content, all of it as text, and what is wrong with its keys."""
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: not valid YAML ({error.problem}). Mend it.") from None
    except yaml.YAMLError:
        raise DataError(f"{path}: not valid YAML (a character that no text file holds). Mend it.") from None
    problems: list[str] = []
    return _build(node, path, problems), problems


def _check_events(text: str, path: Path) -> None:
    """Refuses what would build a tree without end, before one is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise DataError(f"{path}: aliases (*) are not read. Write each column out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise DataError(f"{path}: nested more than {MAX_DEPTH} deep. A schema file needs 3 levels.")


def _build(node: yaml.Node | None, path: Path, problems: list[str]) -> Any:
    """Returns a node as texts, lists and mappings; notes each key that YAML would drop or cannot hold."""
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, path, problems) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return None if node is None else node.value
    content: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{path}:{line}: a key is a word, not a list or a mapping.")
            continue
        if key.value in content:
            problems.append(f"{path}:{line}: '{key.value}' is declared twice. Keep one.")
        content[key.value] = _build(value, path, problems)
    return content
