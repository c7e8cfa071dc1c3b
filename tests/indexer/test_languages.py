"""The language of a file by its name, as editors call it."""

import subprocess
import sys

import pytest
from deadlines import DEADLINE_SECONDS
from pygments.lexers import get_lexer_for_filename
from qcn_indexer.languages import ending_of, language_of, languages
from qcn_indexer.names import unfit_file

CASES = """
a.py python        a.pyi python       a.rs rust          a.go go             a.c c
a.h c              a.cpp cpp          a.hh cpp           a.cs csharp         a.java java
a.kt kotlin        a.swift swift      a.rb ruby          Gemfile ruby        a.php php
a.js javascript    a.mjs javascript   a.jsx javascriptreact                  a.ts typescript
a.tsx typescriptreact                 a.d.ts typescript  a.mts typescript    a.vue vue
a.lua lua          a.r r              a.R r              a.jl julia          a.hs haskell
a.ml ocaml         a.ex elixir        a.erl erlang       a.clj clojure       a.scala scala
a.dart dart        a.sh shellscript   .bashrc shellscript                    a.ps1 powershell
a.bat bat          a.sql sql          a.html html        a.css css           a.scss scss
a.less less        a.json json        a.yml yaml         a.toml toml         a.xml xml
a.md markdown      a.rst restructuredtext                a.tex latex         a.bib bibtex
Makefile makefile  Dockerfile dockerfile                 CMakeLists.txt cmake
a.tf terraform     a.proto protobuf   a.graphql graphql  a.f90 fortran       a.F90 fortran
a.m objective-c    a.mm objective-cpp a.zig zig          a.v verilog         a.vhd vhdl
a.fs fsharp        a.pas pascal       a.vb vb            a.pl perl           a.cu cuda
a.sol solidity     a.txt plaintext    a.diff diff        a.PY python         go.mod go.mod
a.html.twig html+twig                 meson.build meson  a.php5 php          .gitignore ignore
""".split()  # fmt: skip  # noqa: SIM905


@pytest.mark.parametrize(("name", "language"), list(zip(CASES[::2], CASES[1::2], strict=True)))
def test_common_files_have_the_names_that_editors_use(name: str, language: str) -> None:
    assert language_of(name) == language


@pytest.mark.parametrize("name", ["README", "a", "a.unheard-of", ".", "..", "a."])
def test_what_no_language_claims_has_none(name: str) -> None:
    assert language_of(name) is None


USUAL = """
python .py         javascript .js     javascriptreact .jsx                   typescript .ts
typescriptreact .tsx                  go .go             java .java          c .c
cpp .cpp           rust .rs           csharp .cs         ruby .rb            php .php
shellscript .sh    lua .lua           kotlin .kt         markdown .md        perl .pl
""".split()  # fmt: skip  # noqa: SIM905


@pytest.mark.parametrize(("language", "ending"), list(zip(USUAL[::2], USUAL[1::2], strict=True)))
def test_a_language_has_the_ending_that_its_files_usually_have(language: str, ending: str) -> None:
    assert ending_of(language) == ending


def test_an_ending_means_the_language_whose_usual_one_it_is() -> None:
    endings = {language: ending_of(language) for language in languages()}
    assert sum(ending is not None for ending in endings.values()) > 350
    assert all(language_of(f"x{ending}") == one for one, ending in endings.items() if ending)
    assert ending_of("unheard-of") is None


def test_at_least_370_languages_are_known() -> None:
    assert len(languages()) >= 370


@pytest.mark.parametrize(
    "name", ["x.adb", "x.agda", "x.idr", "x.purs", "x.sml", "x.vala", "x.odin"]
)
def test_less_common_languages_are_what_the_library_calls_them(name: str) -> None:
    assert language_of(name) in get_lexer_for_filename(name).aliases


def test_no_source_file_is_taken_for_a_binary_one() -> None:
    """The list of endings that are never read names none that a language has."""
    from pygments.lexers import get_all_lexers

    patterns = [pattern for lexer in get_all_lexers(plugins=False) for pattern in lexer[2]]
    named = {pattern: unfit_file(pattern.replace("*", "x")) for pattern in patterns}
    assert {pattern for pattern, why in named.items() if why and "binary" in why} == set()


def test_asking_for_nothing_loads_nothing_and_asking_loads_no_lexer() -> None:
    program = (
        "import sys; from qcn_indexer.languages import language_of; "
        "assert 'pygments' not in sys.modules; assert language_of('a.py') == 'python'; "
        "assert 'pygments.lexers.python' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE_SECONDS)
