"""Hooks of the documentation site: an API page for every module, and links to files of the repository that work in the site.

The package is walked, so a module that moves needs no change here.
"""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path
from typing import Any

import skeletons  # beside this file
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # of the repository's top, shown in the site
REFERENCE = "API reference"
LINK = re.compile(r"\]\((\.\./[^)#\s]+)")  # out of docs/


def modules() -> dict[str, Path]:
    """Module name -> its file, of every module that is not private."""
    found = {}
    for file in glob("shapmix/**/*.py", root_dir=ROOT, recursive=True):  # also through the link shapmix/kernels
        name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        if "._" not in name:
            found[name] = ROOT / file
    return dict(sorted(found.items()))


def page_of(name: str, file: Path) -> str:
    """Where a module's page lies among the site's sources."""
    place = f"reference/{name.replace('.', '/')}"
    return f"{place}/index.md" if file.name == "__init__.py" else f"{place}.md"


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API reference to the navigation and says where docstrings are read."""
    if config.nav is None:
        raise PluginError("mkdocs.yml has no nav, to which the API reference could be added")
    top: dict[str, list[Any]] = {"": []}  # package -> its part of the navigation
    for name, file in modules().items():
        parent, _, last = name.rpartition(".")
        page: Any = page_of(name, file)
        if file.name == "__init__.py":
            top[name] = [page]
            page = top[name]
        top[parent].append({last: page})
    config.nav.append({REFERENCE: top["shapmix"]})
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(ROOT)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page of every module, the pages that lie at the repository's top, and the pictures of the layouts."""
    for name, place in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, place, content=text))
    for name, file in modules().items():
        # the boost: a search finds the pages about tasks first
        content = f"---\nsearch:\n  boost: 0.5\n---\n\n# {name}\n\n::: {name}\n"
        files.append(File.generated(config, page_of(name, file), content=content))
    for place, picture in skeletons.pictures().items():
        files.append(File.generated(config, place, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes a link to a file of the repository one to its page in the reference, or to a copy of it; adds the layouts' sections."""
    markdown = markdown.replace(skeletons.MARK, skeletons.sections() if skeletons.MARK in markdown else "")
    pages = {file.resolve(): page_of(name, file) for name, file in modules().items()}
    pages |= {ROOT / name: place for name, place in ROOT_PAGES.items()}
    here = Path(page.file.src_uri).parent

    def in_site(link: re.Match[str]) -> str:
        target = (ROOT / "docs" / here / link[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        place = pages.get(target)
        if place is None:
            if not target.is_file() or target.suffix == ".md":
                raise PluginError(f"{page.file.src_uri} links to '{link[1]}', which is no file that the site can copy")
            place = f"files/{target.relative_to(ROOT).as_posix()}"
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(target)))
        return f"]({os.path.relpath(place, here)}"

    return LINK.sub(in_site, markdown)
