"""Brings files that the pages link to, such as recipes, into the site as pages of their own."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from properdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml"}


def _source_of(src_uri: str) -> str:
    """Returns the file of the repository that a page of the site is made of."""
    is_brought = src_uri.startswith("files/")
    return src_uri[len("files/") :].removesuffix(".page.md") if is_brought else f"docs/{src_uri}"


def _page_of(source: str) -> str:
    """Returns the page of the site that shows a file of the repository."""
    return source[len("docs/") :] if source.startswith("docs/") else f"files/{source}.page.md"


def _target(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _content(source: str) -> str:
    path = ROOT / source
    if path.is_dir():
        files = sorted(each.name for each in path.iterdir() if each.is_file())
        links = [f"- [{name}]({path.name}/{name})" for name in files]
        return "\n".join([f"# {source}", "", *links])
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {source}\n\n~~~~{LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for every file outside docs/ that a page links to, and for what those link to."""
    queue = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    known = {source for source, _ in queue}
    while queue:
        source, text = queue.pop()
        for link in LINK.findall(text):
            target = _target(source, link)
            if target in known or target.startswith("docs/") or not (ROOT / target).exists():
                continue
            known.add(target)
            text_of_target = _content(target)
            files.append(File.generated(config, _page_of(target), content=text_of_target))
            queue.append((target, text_of_target))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Points each link to a file of the repository to the page that shows it."""
    source = _source_of(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = _target(source, link[1])
        is_shown = not target.startswith("docs/") or source.split("/")[0] != "docs"
        if not is_shown or not (ROOT / target).exists():
            return link[1]  # within docs/, or dead: the build says so
        return posixpath.relpath(_page_of(target), posixpath.dirname(page.file.src_uri))

    return LINK.sub(moved, markdown)
