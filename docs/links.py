"""Makes links out of `docs/` work in the documentation site, as they do in a clone.

`mkdocs` calls this file. Every file of the project that a page links to becomes a page of the
site, below `project/`: Markdown unchanged, a notebook with its outputs, code as a listing.
"""

import base64
import json
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".sh": "bash", ".css": "css", ".html": "html"}


def on_files(files: Files, config) -> Files:
    """Adds a page for each linked file, and for the files that these pages link to."""
    folder = Path(config.docs_dir)
    waiting = [(folder / f.src_uri, f.content_string) for f in files if f.is_documentation_page()]
    made: dict[str, str | bytes] = {}
    while waiting:
        origin, text = waiting.pop()
        for target in _targets(origin, text):
            uri = _uri(target)
            if uri not in made and not files.get_file_from_path(uri):
                made |= _shown(target, uri)
                if target.suffix == ".md":
                    waiting.append((target, target.read_text()))
    for uri, content in made.items():
        in_nav = uri == "project/CONTRIBUTING.md"
        inclusion = InclusionLevel.UNDEFINED if in_nav else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Turns links to files of the project into links to their pages."""
    uri = page.file.src_uri
    origin = ROOT / "docs" / uri
    if uri.startswith("project/"):
        origin = ROOT / uri.removeprefix("project/")
        if origin.suffix == ".md" and not origin.exists():
            origin = origin.with_suffix("")
            if origin.suffix != ".ipynb":
                return markdown  # a listing
    return _rewritten(markdown, origin, uri)


def _targets(origin: Path, text: str) -> list[Path]:
    """Returns the files of the project outside the site that a page links to."""
    found = [(origin.parent / path).resolve() for path, _ in _LINK.findall(text)]
    return [path for path in found if path.is_file() and not _is_of_the_site(path)]


def _is_of_the_site(path: Path) -> bool:
    return path.is_relative_to(ROOT / "docs") and path.suffix != ".py"


def _uri(path: Path) -> str:
    """Returns the path of a file in the site."""
    if _is_of_the_site(path):
        return path.relative_to(ROOT / "docs").as_posix()
    name = f"project/{path.relative_to(ROOT).as_posix()}"
    return name if path.suffix in (".md", ".png") else f"{name}.md"


def _rewritten(markdown: str, origin: Path, uri: str) -> str:
    def replace(match: re.Match) -> str:
        path, anchor = match[1], match[2] or ""
        target = (origin.parent / path).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]
        return f"]({posixpath.relpath(_uri(target), posixpath.dirname(uri) or '.')}{anchor})"

    return _LINK.sub(replace, markdown)


def _shown(path: Path, uri: str) -> dict[str, str | bytes]:
    """Returns a file as a page, with its pictures."""
    if path.suffix == ".ipynb":
        return _notebook(json.loads(path.read_text()), path.name, uri)
    if path.suffix == ".png":
        return {uri: path.read_bytes()}
    text = path.read_text()
    if path.suffix == ".md":
        return {uri: text}
    language = _LANGUAGES.get(path.suffix, "text")
    return {uri: f"# `{path.relative_to(ROOT)}`\n\n``````{language}\n{text}\n``````\n"}


def _notebook(notebook: dict, name: str, uri: str) -> dict[str, str | bytes]:
    parts, pictures = [f"*The notebook `notebooks/{name}`, with its outputs.*"], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{uri}.{len(pictures)}.png"
                pictures[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output]({os.path.basename(picture)})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text}\n```")
    return {uri: "\n\n".join(parts) + "\n", **pictures}
