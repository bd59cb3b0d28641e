"""English text that every machine here has: the docstrings of installed Python packages, as documents of a .jsonl file.

    python tools/docstrings.py docstrings.jsonl

For trying `budgeted-lora compress` without a corpus of one's own. Files that cannot be parsed are left out.
"""

import ast
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 400  # characters of a docstring that is worth a document


def docstrings(file: Path) -> Iterator[str]:
    """The long docstrings of a module, its classes and functions, without their indentation."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(cleaned := inspect.cleandoc(text)) >= SHORTEST:
                yield cleaned


def main(out: Path) -> None:
    warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in other people's strings
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    texts = list(dict.fromkeys(text for file in files for text in docstrings(file)))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    print(f"{out}: {len(texts):,} documents, {sum(map(len, texts)):,} characters from {len(files):,} files")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/docstrings.py OUT.jsonl")
    main(Path(sys.argv[1]))
