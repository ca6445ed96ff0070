"""`fusionkit new`: a plugin to start from, as an installable package that works."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fusionkit.registry import Registry

LONGEST_NAME = 40
"""So that every file's name stays a name that systems take; ours."""


def run(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="encoder, raiser, head or source.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The component's name, in snake_case.")],
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="Where the package's folder goes.")
    ] = Path("."),
) -> None:
    """Write a plugin to start from: a package fusionkit-NAME that can be run, checked and installed.

    Nothing is overwritten. Its lines to change say `yours`; its README has the next commands.
    """
    from fusionkit.errors import UsageError, suggest
    from fusionkit.specs import COMPONENT_KINDS

    if kind not in COMPONENT_KINDS:
        raise UsageError(
            f"new: there is no kind of component called '{kind}'. {suggest(kind, COMPONENT_KINDS)}"
        )
    problems = list(_look_at_name(kind, name, context.obj.registry))
    folder = into / f"fusionkit-{name.replace('_', '-')}"
    if not into.is_dir():
        problems.append(f"new: --into {into}: there is no such folder. Make it first.")
    elif os.path.lexists(folder):
        problems.append(f"new: {folder} is there already. Choose another name, or --into another folder.")
    if problems:
        raise UsageError(problems)
    _write(_template(kind), folder, _words(kind, name))
    print(f"Written: {folder}. Lines to change say `yours`; next ({folder / 'README.md'}):")
    print(f"  {shlex.join(['fusionkit', '-p', str(folder / f'fusionkit_{name}'), 'check', name])}")


def _look_at_name(kind: str, name: str, registry: Registry) -> Iterator[str]:
    """Yields what stands against a name: that of a component, of a package, of files and of classes."""
    from fusionkit.errors import shorten

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        yield (
            f"new: a component's name is in snake_case, of at most {LONGEST_NAME} characters "
            f"(given: {shorten(name)}). Say one like my_{kind}."
        )
    elif keyword.iskeyword(name):
        yield f"new: {name} is a word of Python. Choose another name, such as my_{name}."
    elif name in registry.names(kind):
        owners = " and ".join(plugin.name for card, plugin in registry.cards(kind) if card.name == name)
        article = "an" if kind == "encoder" else "a"
        yield f"new: there is {article} {kind} {name} already, of plugin {owners}. Choose another name."
    else:
        for module in (name, f"fusionkit_{name}"):
            if _is_module(module):
                yield f"new: a module {module} is installed already. Choose another name, such as my_{name}."
        for word in _taken(kind, name):
            yield f"new: {word} means something else in the template. Choose another name, such as my_{name}."


def _is_module(name: str) -> bool:
    """Says whether a module can be imported; nothing is imported for it."""
    return name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None


def _taken(kind: str, name: str) -> list[str]:
    """Returns the classes of a template that the new component's own classes would hide."""
    *_, (own, camel) = _words(kind, name).items()
    code = "\n".join(path.read_text(encoding="utf-8") for path in _template(kind).rglob("*.py"))
    others = set(re.findall(r"\w+", re.sub(rf"\b{own}(Config)?\b", "", code)))
    return [word for word in (camel, f"{camel}Config") if word in others]


def _template(kind: str) -> Path:
    return Path(__file__).parent.parent / "template" / kind


def _words(kind: str, name: str) -> dict[str, str]:
    """Returns what the template's own name becomes, in each of its spellings."""
    spellings = (str, lambda text: text.replace("_", "-"), lambda text: text.title().replace("_", ""))
    return {spell(f"my_{kind}"): spell(name) for spell in spellings}


def _write(template: Path, folder: Path, words: Mapping[str, str]) -> None:
    """Writes a template's files under another name, all or none of them."""
    own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for path in sorted(template.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                target = own / _renamed(str(path.relative_to(template)), words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_renamed(path.read_text(encoding="utf-8"), words), encoding="utf-8")
        own.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner alone
        os.rename(own, folder)
    except BaseException:
        shutil.rmtree(own)
        raise


def _renamed(text: str, words: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], text)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
