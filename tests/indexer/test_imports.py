"""Which files import which, one language a case."""

import ast
import sysconfig
from pathlib import Path, PurePosixPath

import pytest
from qcn_indexer.imports import KnownImports, import_graph, imports
from qcn_indexer.syntax import LONGEST

# Per language: the files of a root, and what the first of them imports.
CASES: dict[str, tuple[dict[str, str], set[str]]] = {
    "python": (
        {
            "src/app/main.py": (
                "import os, app.cache as kept\nfrom app.models import user\n"
                "from . import views\nfrom .forms import (\n    Form,\n)\nfrom ..setup import x\n"
            ),
            "src/app/cache.py": "",
            "src/app/models/__init__.py": "",
            "src/app/models/user.py": "",
            "src/app/views.py": "",
            "src/app/forms.py": "",
            "src/setup.py": "",
            "other/views.py": "",
        },
        {
            "src/app/cache.py",
            "src/app/models/user.py",
            "src/app/views.py",
            "src/app/forms.py",
            "src/setup.py",
        },
    ),
    "typescript": (
        {
            "src/main.ts": (
                "import { a } from './a';\nimport './side.js';\nconst b = require('../lib/b');\n"
                "export * from './parts';\nimport fs from 'fs';\nawait import('./late.mjs');\n"
            ),
            "src/a.tsx": "",
            "src/side.ts": "",
            "lib/b.js": "",
            "src/parts/index.ts": "",
            "src/late.mjs": "",
            "src/fs.ts": "",
        },
        {"src/a.tsx", "src/side.ts", "lib/b.js", "src/parts/index.ts", "src/late.mjs"},
    ),
    "go": (
        {
            "cmd/main.go": 'import (\n\t"fmt"\n\tc "example.com/me/app/pkg/cache"\n)\n',
            "pkg/cache/cache.go": "",
            "pkg/cache/evict.go": "",
            "pkg/cache/cache_test.go": "",
            "fmt/fmt.go": "",
        },
        {"pkg/cache/cache.go", "pkg/cache/evict.go"},
    ),
    "java": (
        {
            "app/src/main/java/me/app/Main.java": (
                "import me.app.cache.Cache;\nimport static me.app.Limits.MOST;\n"
            ),
            "app/src/main/java/me/app/cache/Cache.java": "",
            "app/src/main/java/me/app/Limits.java": "",
            "old/src/main/java/me/app/Limits.java": "",
        },
        {"app/src/main/java/me/app/cache/Cache.java", "app/src/main/java/me/app/Limits.java"},
    ),
    "c": (
        {
            "src/main.c": '#include <stdio.h>\n#include "cache.h"\n# include <app/limits.h>\n',
            "src/cache.h": "",
            "src/cache.c": "",
            "include/app/limits.h": "",
            "other/cache.h": "",
        },
        {"src/cache.h", "src/cache.c", "include/app/limits.h"},
    ),
    "rust": (
        {
            "src/main.rs": "mod cache;\nuse crate::parts::{evict::{self, Evict as E}, Part};\n",
            "src/cache.rs": "",
            "src/parts/mod.rs": "",
            "src/parts/evict.rs": "",
        },
        {"src/cache.rs", "src/parts/mod.rs", "src/parts/evict.rs"},
    ),
    "php": (
        {
            "src/Models/Main.php": (
                "<?php\nuse App\\Models\\User;\nuse Other\\Thing;\nrequire_once 'helpers.php';\n"
            ),
            "src/Models/User.php": "",
            "src/Models/helpers.php": "",
            "src/Thing.txt": "",
        },
        {"src/Models/User.php", "src/Models/helpers.php"},
    ),
    "shell": (
        {
            "bin/main.sh": '. ./common.sh\nsource "$HERE/lib/log.sh"\n',
            "bin/common.sh": "",
            "lib/log.sh": "",
        },
        {"bin/common.sh", "lib/log.sh"},
    ),
    "lua": (
        {
            "main.lua": "local cache = require('app.cache')\nlocal x = require 'app.parts'\n",
            "lua/app/cache.lua": "",
            "lua/app/parts/init.lua": "",
        },
        {"lua/app/cache.lua", "lua/app/parts/init.lua"},
    ),
    "ruby": (
        {
            "lib/app/main.rb": "require_relative 'cache'\nrequire 'app/limits'\nrequire 'json'\n",
            "lib/app/cache.rb": "",
            "lib/app/limits.rb": "",
        },
        {"lib/app/cache.rb", "lib/app/limits.rb"},
    ),
}


@pytest.mark.parametrize("language", CASES)
def test_imports_are_found_in_the_root(language: str) -> None:
    files, expected = CASES[language]
    graph = import_graph({PurePosixPath(path): text for path, text in files.items()})
    assert {str(path) for path in graph[PurePosixPath(next(iter(files)))]} == expected


def imported_by_ast(text: str) -> set[tuple[str, ...]]:
    """What Python's own parser says that a text imports, the most precise path of each."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            front = (".", *[".."] * (node.level - 1)) if node.level else ()
            module = tuple((node.module or "").split(".")) if node.module else ()
            found |= {(*front, *module, alias.name) for alias in node.names}
    return found


def test_of_the_standard_library_is_read_what_python_itself_reads() -> None:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = file.read_text("utf-8")
        if len(text.encode()) <= LONGEST:
            found = {alternatives[0] for alternatives in imports(PurePosixPath("a.py"), text)}
            assert found == imported_by_ast(text), file.name


def test_a_file_is_parsed_once_for_each_state_of_it() -> None:
    known, path = KnownImports(), PurePosixPath("a.py")
    first = known.of(path, "import a\n")
    assert list(first) == imports(path, "import a\n") == [(("a",),)]
    for number in range(KnownImports.MOST - 1):
        known.of(PurePosixPath(f"other{number}.txt"), "")
    assert known.of(path, "import a\n") is first
    assert list(known.of(path, "import b\n")) == [(("b",),)]


def test_files_of_no_known_language_import_nothing() -> None:
    texts = {
        PurePosixPath("notes.txt"): "import a\n",
        PurePosixPath("a.py"): "",
        PurePosixPath("self.py"): "import self\n",
    }
    assert set(import_graph(texts).values()) == {frozenset()}
