"""The signatures of a file, one language a case."""

from pathlib import PurePosixPath

import pytest
from qcn_indexer.skeleton import SHORTER, skeleton

CASES = {
    "a.py": (
        '"""A module."""\nimport os\n\nclass Cache(dict):\n    size = 0\n\n'
        "    async def get(\n        self, key: str\n    ) -> int:\n        return 1\n\n"
        "def main() -> None:\n    defined = 1\n",
        "class Cache(dict):\n    size = 0\n    async def get(\n        self, key: str\n"
        "    ) -> int:\n"
        "def main() -> None:\n",
    ),
    "a.ts": (
        "import { x } from './x';\nexport interface Point { x: number }\nexport class Cache {\n"
        "  private size = 0;\n  async get(key: string): Promise<number> {\n"
        "    if (key) {\n      return x(key);\n    }\n  }\n}\n"
        "export const limit = 3;\nconst hidden = 4;\nfunction main() {\n  run();\n}\n",
        "export interface Point\nx: number\nexport class Cache\n  private size = 0\n"
        "  async get(key: string): Promise<number>\nexport const limit = 3;\n"
        "const hidden = 4;\nfunction main()\n",
    ),
    "a.go": (
        "package main\n\ntype Cache struct {\n\tsize int\n}\n\n"
        "func (c *Cache) Get(key string) int {\n\treturn 1\n}\n",
        "type Cache struct {\n\tsize int\n}\nfunc (c *Cache) Get(key string) int\n",
    ),
    "A.java": (
        "package a;\n\npublic final class A {\n    private int size = f();\n\n"
        "    public int get(String key,\n                   int other) {\n"
        "        return 1;\n    }\n}\n",
        "public final class A\n    private int size = f();\n"
        "    public int get(String key,\n                   int other)\n",
    ),
    "a.h": (
        "#include <x.h>\nstruct cache {\n  int size;\n};\nint cache_get(struct cache *c,\n"
        "              const char *key);\n",
        "struct cache\n  int size;\nint cache_get(struct cache *c,\n"
        "              const char *key);\n",
    ),
    "a.cpp": (
        "template <class T>\nT Cache<T>::get(int key) {\n"
        "  if (key) {\n    return run(key);\n  }\n}\n",
        "template <class T>\nT Cache<T>::get(int key)\n",
    ),
    "a.rs": (
        "use x::y;\n\npub struct Cache {\n    size: u32,\n}\n\nimpl Cache {\n"
        "    pub(crate) async fn get(&self, key: &str) -> u32 {\n        1\n    }\n}\n",
        "pub struct Cache {\n    size: u32,\n}\nimpl Cache\n"
        "    pub(crate) async fn get(&self, key: &str) -> u32\n",
    ),
    "a.rb": (
        "require 'x'\nmodule M\n  class Cache\n    def get(key)\n      1\n    end\n  end\nend\n",
        "module M\n  class Cache\n    def get(key)\n",
    ),
    "a.cs": (
        "using System;\nnamespace A.B;\n\npublic class Cache : Base {\n"
        "    public int Size { get; set; }\n    public int Get(string key) => 1;\n}\n",
        "public class Cache : Base\n    public int Size\n    public int Get(string key)\n",
    ),
    "a.php": (
        "<?php\nnamespace A;\n\nclass Cache {\n    private int $size = 0;\n"
        "    public function get(string $key): int {\n        return 1;\n    }\n}\n",
        "namespace A;\nclass Cache\n    private int $size = 0;\n"
        "    public function get(string $key): int\n",
    ),
    "a.sh": ("set -e\nget() {\n  echo 1\n}\nget x\n", "get()\n"),
    "a.lua": ("local M = {}\nfunction M.get(key)\n  return 1\nend\n", "function M.get(key)\n"),
}

BODY = "\n" * 400  # no definition: the cases are so short that their signatures are most of them


@pytest.mark.parametrize("path", CASES)
def test_definitions_are_kept_without_their_bodies(path: str) -> None:
    text, expected = CASES[path]
    assert skeleton(PurePosixPath(path), text + BODY) == expected


def test_what_has_no_definitions_or_no_known_language_has_no_skeleton() -> None:
    assert skeleton(PurePosixPath("a.py"), "print(1)\n") == ""
    assert skeleton(PurePosixPath("a.txt"), "def f():\n    pass\n") == ""


def test_what_would_be_hardly_shorter_has_no_skeleton() -> None:
    constants = "".join(f"NAME_{i} = {i}\n" for i in range(100))
    assert skeleton(PurePosixPath("a.py"), constants) == ""
    function = "def f():\n" + "    run()\n" * 200
    found = skeleton(PurePosixPath("a.py"), constants + function)
    assert found == constants + "def f():\n"
    assert len(found) <= SHORTER * len(constants + function)
