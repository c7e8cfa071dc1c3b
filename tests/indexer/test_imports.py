"""Which files import which, one language a case."""

from pathlib import PurePosixPath as Path

import pytest
from qcn_indexer.imports import import_graph

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
            "src/main.rs": "mod cache;\npub mod parts;\nuse crate::parts::evict::Evict;\n",
            "src/cache.rs": "",
            "src/parts/mod.rs": "",
            "src/parts/evict.rs": "",
        },
        {"src/cache.rs", "src/parts/mod.rs", "src/parts/evict.rs"},
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
    graph = import_graph({Path(path): text for path, text in files.items()})
    assert {str(path) for path in graph[Path(next(iter(files)))]} == expected


def test_files_of_no_known_language_import_nothing() -> None:
    texts = {Path("notes.txt"): "import a\n", Path("a.py"): "", Path("self.py"): "import self\n"}
    assert set(import_graph(texts).values()) == {frozenset()}
