"""A hook of mkdocs: one page for each kernel, from its section of docs/kernels.md.

The section stays where the architecture test looks for it; the page adds the function's own documentation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """The kernels' sections of docs/kernels.md by name."""
    return {name: body.strip() for name, body in SECTION.findall(text)}


def on_config(config: Any) -> Any:
    """Fills the entry Kernels of the navigation."""
    kernels = sections((Path(config["docs_dir"]) / "kernels.md").read_text(encoding="utf-8"))
    pages = [{name: f"kernels/{name}.md"} for name in kernels]
    entry = {"Kernels": [{"All of them": "kernels.md"}, *pages]}
    config["nav"] = [entry if e == {"Kernels": "kernels.md"} else e for e in config["nav"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the kernels' pages."""
    text = (Path(config["docs_dir"]) / "kernels.md").read_text(encoding="utf-8")
    for name, body in sections(text).items():
        content = (
            f"# {name}\n\n{body}\n\nThe letters are those of [all kernels](../kernels.md).\n\n"
        )
        content += f"::: curvext.kernels.{name}\n"
        files.append(File.generated(config, f"kernels/{name}.md", content=content))
    return files
