"""The signatures of a file, one language a case."""

from pathlib import PurePosixPath

import pytest
from qcn_indexer.skeleton import LONGEST_SIGNATURE, skeleton

CASES = {
    "a.py": (
        '"""A module."""\nimport os\n\nclass Cache(dict):\n    size = 0\n\n'
        "    async def get(\n        self, key: str\n    ) -> int:\n        return 1\n\n"
        "def main() -> None:\n    defined = 1\n",
        "class Cache(dict):\n    async def get(\n        self, key: str\n    ) -> int:\n"
        "def main() -> None:\n",
    ),
    "a.ts": (
        "import { x } from './x';\nexport interface Point { x: number }\nexport class Cache {\n"
        "  private size = 0;\n  async get(key: string): Promise<number> {\n"
        "    if (key) {\n      return x(key);\n    }\n  }\n}\n"
        "export const limit = 3;\nconst hidden = 4;\nfunction main() {\n  run();\n}\n",
        "export interface Point { x: number }\nexport class Cache\n"
        "  async get(key: string): Promise<number>\nexport const limit = 3;\nfunction main()\n",
    ),
    "a.go": (
        "package main\n\ntype Cache struct {\n\tsize int\n}\n\n"
        "func (c *Cache) Get(key string) int {\n\treturn 1\n}\n",
        "type Cache struct\nfunc (c *Cache) Get(key string) int\n",
    ),
    "A.java": (
        "package a;\n\npublic final class A {\n    private int size = f();\n\n"
        "    public int get(String key,\n                   int other) {\n"
        "        return 1;\n    }\n}\n",
        "public final class A\n    public int get(String key,\n                   int other)\n",
    ),
    "a.h": (
        "#include <x.h>\nstruct cache {\n  int size;\n};\nint cache_get(struct cache *c,\n"
        "              const char *key);\n",
        "struct cache\nint cache_get(struct cache *c,\n              const char *key);\n",
    ),
    "a.cpp": (
        "template <class T>\nT Cache<T>::get(int key) {\n"
        "  if (key) {\n    return run(key);\n  }\n}\n",
        "template <class T>\nT Cache<T>::get(int key)\n",
    ),
    "a.rs": (
        "use x::y;\n\npub struct Cache {\n    size: u32,\n}\n\nimpl Cache {\n"
        "    pub(crate) async fn get(&self, key: &str) -> u32 {\n        1\n    }\n}\n",
        "pub struct Cache\nimpl Cache\n    pub(crate) async fn get(&self, key: &str) -> u32\n",
    ),
    "a.rb": (
        "require 'x'\nmodule M\n  class Cache\n    def get(key)\n      1\n    end\n  end\nend\n",
        "module M\n  class Cache\n    def get(key)\n",
    ),
}


@pytest.mark.parametrize("path", CASES)
def test_definitions_are_kept_without_their_bodies(path: str) -> None:
    text, expected = CASES[path]
    assert skeleton(PurePosixPath(path), text) == expected


def test_what_has_no_definitions_or_no_known_language_has_no_skeleton() -> None:
    assert skeleton(PurePosixPath("a.py"), "x = 1\n") == ""
    assert skeleton(PurePosixPath("a.txt"), "def f():\n    pass\n") == ""


def test_a_signature_that_is_never_closed_ends() -> None:
    text = "def f(\n" + "    x,\n" * 100
    assert skeleton(PurePosixPath("a.py"), text).count("\n") == LONGEST_SIGNATURE
