"""What of the model's text is offered: each case is a file with a cursor, `‸`, and an answer.

The cases are complaints of other tools' users (doubled brackets, repeated lines, leaked tokens,
fences, wrong indentation, blank lines) and their opposites: text that looks alike and must stay.
"""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sampling import examples

from qcn_lsp.postprocess import Context, clean

CURSOR = "‸"


def offered(marked: str, answer: str, language: str = "python", line_end: str = "\n") -> str:
    before, after = marked.split(CURSOR)
    return clean(answer, Context(before, after, language, line_end))


def check(cases: list[tuple[str, str, str]], language: str = "python") -> None:
    for marked, answer, expected in cases:
        assert offered(marked, answer, language) == expected, (marked, answer)


def test_control_tokens_end_the_text() -> None:
    check(
        [
            ("x‸", " = 1<|endoftext|>y = 2", " = 1"),
            ("x‸", " = 1<|fim_pad|>", " = 1"),
            ("x‸", " = 1\n<|file_sep|>b.py\nimport a", " = 1"),
            ("x‸", " = 1<|im_end|>\n<|im_start|>user", " = 1"),
            ("x‸", "<|fim_middle|> = 1", ""),
            ("x‸", " = 1<|fim_suff", " = 1"),
            ("x‸", " = 1<\uff5cfim\u2581end\uff5c>", " = 1"),
            ("x‸", " = 1</tool_call>", " = 1"),
            # Half a character at the end of the token budget.
            ("x‸", " = 'caf\ufffd", " = 'caf"),
            # Only looks like one.
            ("x = a ‸", "<| b", "<| b"),
            ("x = a ‸", "< b", "< b"),
        ]
    )


def test_what_its_reader_would_not_see_is_not_offered() -> None:
    check(
        [
            ("x = ‸", "'user\u202e # admin'", ""),
            ("x = ‸", "a\u200bb", ""),
            ("x = ‸", "'\U000e0041'", ""),
            ("x = ‸", "a\U000e0100b", ""),
            ("x = ‸", "a\u3164b", ""),
            # The file has it too: joiners belong to some scripts and emoji.
            ("a = '👨\u200d👩'\nx = ‸", "'👨\u200d👧'", "'👨\u200d👧'"),
        ]
    )


def test_markdown_fences_are_no_code() -> None:
    check(
        [
            ("‸", "```python\nx = 1\n```", "x = 1"),
            ("‸", "```\nx = 1\n```\nThis sets x.", "x = 1"),
            ("‸", "~~~py\nx = 1\n~~~", "x = 1"),
            ("‸", "\n```python\nx = 1", "x = 1"),
            ("x = 1‸", "\ny = 2\n```", "\ny = 2"),
            ("x = 1‸", "\ny = 2\n```\nHere y is two.", "\ny = 2"),
            # A fence of the file's own, in a docstring.
            ('def f():\n    """Run it:\n\n    ```sh\n    ‸', "make\n    ```", "make\n    ```"),
        ]
    )
    check([("Run\n\n‸", "```sh\nmake\n```", "```sh\nmake\n```")], "markdown")
    check([("const s = ‸", "`a`", "`a`")], "javascript")


def test_in_the_middle_of_a_line_one_line() -> None:
    check(
        [
            ("foo(‸)", "a, b\nbar()", "a, b"),
            ("if ‸:", "ready:\n    go()", "ready"),
            ("x = ‸  # the answer", "42\ny = 1", "42"),
            # Only white space follows: this is the end of the line.
            ("if ready:‸  ", "\n    go()", "\n    go()"),
            ("foo(‸)", "\n    a,\n    b", ""),
        ]
    )


def test_the_rest_of_the_line_is_not_repeated() -> None:
    check(
        [
            ("foo(‸)", "x)", "x"),
            ("foo(‸, b)", "a, b)", "a"),
            ("foo(‸):", "self):", "self"),
            ("foo(‸):", "self)", "self"),
            ("foo(‸);", "x);", "x"),
            ('print("‸")', 'hello")', "hello"),
            ('print("‸")', 'hello"', "hello"),
            ("d = {‸}", '"a": 1}', '"a": 1'),
            ("a[‸]", "i]", "i"),
            ("return ‸ + c", "a + b + c", "a + b"),
            ("for i in ‸:", "range(3):", "range(3)"),
            # The bracket at the end is the text's own.
            ("foo(‸)", "bar(1)", "bar(1)"),
            ("foo(‸)", "bar(1))", "bar(1)"),
            ("foo(‸)", "[a, b]", "[a, b]"),
            ("foo(‸])", "bar[1]", "bar[1]"),
            # The editor has closed what an f-string opens.
            ('print(f"{‸}")', 'name}")', "name"),
            ('print(f"{a} {‸}")', 'name}")', "name"),
            ('foo("‸")', 'x")', "x"),
            # Shared by chance.
            ("x = ‸b", "a", "a"),
            ("x = ‸_b", "a", "a"),
            ("#if __x_‸_", "_", "_"),
        ]
    )


def test_the_next_lines_are_not_repeated() -> None:
    check(
        [
            ("x = ‸\ny = compute(x)\n", "1\ny = compute(x)", "1"),
            ("x = ‸\ny = compute(x)\n", "1\ny = comp", "1"),
            ("x = ‸\n\n\ny = compute(x)\n", "1\n\ny = compute(x)\nz = 3", "1"),
            (
                "def f():\n    ‸\n\n\ndef g():\n    pass\n",
                "return 1\n\n\ndef g():\n    pass",
                "return 1",
            ),
            ("‸\nreturn total\n", "return total", ""),
            # The same line, but deeper: it is another one.
            (
                "def f(a):\n    ‸\n    return None\n",
                "if a:\n        return None",
                "if a:\n        return None",
            ),
        ]
    )


def test_the_file_closes_its_own_blocks() -> None:
    check(
        [
            ("if (x) {‸\n}", "\n  foo();\n}", "\n  foo();"),
            ("if (x) {\n  ‸\n}", "foo();\n}", "foo();"),
            ("f(() => {\n  ‸\n});", "go();\n});", "go();"),
            ("if (x) {\n  ‸\n}", "if (y) {\n    z();\n  }", "if (y) {\n    z();\n  }"),
            ("if (x) {\n‸\n}", "  if (y) {\n    z();\n  }\n}", "  if (y) {\n    z();\n  }"),
            # Nothing closes it yet.
            ("function f() {\n  ‸", "return 1;\n}", "return 1;\n}"),
            ("function f() {‸", "\n  return 1;\n}", "\n  return 1;\n}"),
        ],
        "javascript",
    )


def test_a_loop_is_offered_once() -> None:
    check(
        [
            ("‸", "a()\nb()\na()\nb()\na()", "a()\nb()"),
            ("‸", "go(1)\ngo(1)\ngo(1)\ngo(1)", "go(1)"),
            ("x = ‸", "foo.bar.foo.bar.foo.bar.foo.bar.foo.bar.foo.bar.", "foo.bar."),
            ("x = ‸", "1\nif a:\n    b()\nif a:\n    b()", "1\nif a:\n    b()"),
            # Tables and pairs are honest.
            ("x = [‸", "\n    0,\n    0,\n]", "\n    0,\n    0,\n]"),
            ("‸", "push(a)\npush(a)", "push(a)\npush(a)"),
            ("x = ‸", "[0, 0, 0, 0, 0, 0, 0]", "[0, 0, 0, 0, 0, 0, 0]"),
            ("# ‸", "------------------------", "------------------------"),
        ]
    )


def test_what_stands_above_is_not_echoed() -> None:
    check(
        [
            ("total = 0\n‸", "total = 0\nreturn total", ""),
            ("total = 0‸", "\ntotal = 0", ""),
            ("    total = 0\n    tot‸", "al = 0", ""),
            ("a = load()\nb = a.x\n‸", "a = load()\nb = a.x", ""),
            # A new line that only starts alike.
            ("total = 0\ntotal‸", " = 1", " = 1"),
            ("}\n‸", "}", ""),
            ("#endif\n‸", "#endif", "#endif"),
            ("    run(all)\n‸", "run(all)", "run(all)"),
            ("x = [\n    1,\n‸", "    2,\n]", "    2,\n]"),
        ]
    )


def test_nothing_is_closed_that_is_not_open() -> None:
    check(
        [
            ("x = foo‸", "(a))", "(a)"),
            ("x = foo(‸", "a)", "a)"),
            ("x = foo(‸", "a))", "a)"),
            ("x = foo(‸", "a]", "a"),
            ("f(g(‸)", "x)", "x)"),
            ("f(g(‸)", "x))", "x)"),
            ("foo(‸)", "x).bar()", "x"),
            # What follows closes what the text opens, and the text what stood open before.
            ("f(g(a‸, 1))", "), max(b", "), max(b"),
            ("x = [(‸", "1, 2)]", "1, 2)]"),
            # In strings and comments brackets are text, also where they were begun before.
            ('if scope["‸', 'a"] in ("b", "c"):', 'a"] in ("b", "c"):'),
            ("# adds (both‸", " of) them", " of) them"),
            ("# adds (both‸", " of)\nx = f(a))", " of)\nx = f(a)"),
            ("x = '#'; f(‸", "a))", "a)"),
            ("x = ‸", '":)"', '":)"'),
            ("x = 1‸", "  # :) fine", "  # :) fine"),
            ("s = ')'\nfoo(‸", "a)", "a)"),
        ]
    )
    check(
        [
            ("class A {\n  f() {\n    foo(‸\n  }\n}", "1);", "1);"),
            # The class opens above what is shown; its bracket below is nobody's here.
            ("  f() {\n    foo(‸\n  }\n}", "1);", "1);"),
            ("x = a ‸", "/ b  // ) not code", "/ b  // ) not code"),
            ("/* adds (\n * ‸", "both) them", "both) them"),
            ("/* adds */ foo(‸", "a))", "a)"),
            ("// adds (both‸", " of) them", " of) them"),
        ],
        "typescript",
    )


def test_the_text_ends_with_its_block() -> None:
    check(
        [
            ("def f():\n    ‸", "return 1\n\nx = f()", "return 1"),
            ("def f():‸", "\n    return 1\n\n\nx = f()", "\n    return 1"),
            (
                "class A:\n    def f(self):\n        ‸",
                "return 1\n\n    def g(self):\n        return 2",
                "return 1",
            ),
            (
                "class A:\n    ‸",
                "def f(self):\n        return 1\n\n    def g(self):\n        return 2",
                "def f(self):\n        return 1",
            ),
            # The star of a comment is no indentation.
            ("/**\n * Adds‸", ".\n */\nint add();", ".\n */\nint add();"),
            # Blank lines and branches belong to the block.
            ("def f():\n    ‸", "a = 1\n\n    return a", "a = 1\n\n    return a"),
            (
                "def f():\n    ‸",
                "if a:\n        b()\n    else:\n        c()",
                "if a:\n        b()\n    else:\n        c()",
            ),
        ]
    )
    check([("if x; then\n  ‸", "echo a\nfi\n\nrm b", "echo a\nfi")], "shellscript")


def test_white_space_is_the_files_own() -> None:
    check(
        [
            ("class A:\n\tdef f(self):\n\t\t‸", "a = 1\n        b = 2", "a = 1\n\t\tb = 2"),
            ("if a:\n  b()\nif c:‸", "\n\td()", "\n  d()"),
            # Indented already.
            ("def f():\n    ‸", "    return 1", "return 1"),
            ("def f():\n    if a:\n        ‸", "        return 1", "return 1"),
            ("def f():\n\tif a:\n\t\t‸", "    return 1", "return 1"),
            ("def f():\n    if a:\n    ‸", "    return 1", "    return 1"),
            ("from a import (\n ‸\n    b,\n)", "   c,", "   c,"),
            # Blank lines.
            ("x = 1‸", "\ny = 2\n\n", "\ny = 2"),
            ("def f():‸", "\n\n    return 1", "\n    return 1"),
            ("def f():\n    ‸", "\n    return 1", "return 1"),
            ("import os‸", "\n\n\ndef f(): ...", "\n\n\ndef f(): ..."),
            ("import os‸", "\n\n\n\n\n\ndef f(): ...", "\n\n\ndef f(): ..."),
            ("x = 1‸", "\n   \n", ""),
            ("x = 1‸", "   ", ""),
            ("x = 1‸", "", ""),
            ("x =‸", " 1   ", " 1"),
            # One space where one is meant.
            ("x = ‸", " 1", "1"),
            ("x = 1 ‸", " + 2", "+ 2"),
            ("x = 1 ‸", " # one", " # one"),
            ("x =\t‸", "\t1", "1"),
            # What follows on the line is kept apart.
            ("return ‸x", "not ", "not "),
            ("foo(‸b)", "a, ", "a, "),
            ("foo(‸)", "a ", "a"),
            ("x = ‸ + 1", "a ", "a"),
            ("x = ‸  # one", "a ", "a"),
        ]
    )


def test_line_ends_are_the_files_own() -> None:
    assert offered("def f():‸", "\n    a()\n    b()", line_end="\r\n") == "\r\n    a()\r\n    b()"
    assert offered("def f():‸", "\r\n    a()\r\n    b()") == "\n    a()\n    b()"


# --- What holds for every text ------------------------------------------------------------------

CONTROL = "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
CONTROL_TOKENS = [*CONTROL.split(), "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>"]
WORDS = """foo bar x 12 if return ( ) [ ] { } , . : = + ' " # // ``` é 🙂 <| |>"""
SPACES = [" ", "\n", "\t", "\n    ", "\n        ", "    ", "\r\n"]
code = st.lists(
    st.sampled_from([*WORDS.split(), *SPACES]),
    max_size=24,
).map("".join)
languages = st.sampled_from(["python", "javascript", "markdown", "unheard-of"])


@pytest.mark.long
@examples(sample=300, full=4000)
@given(before=code, after=code, answer=code, language=languages)
def test_an_answer_is_shortened_or_re_indented_and_nothing_else(
    before: str, after: str, answer: str, language: str
) -> None:
    """No filter invents text, and inserting never touches what the user wrote."""
    text = clean(answer, Context(before, after, language))
    words = re.sub(r"\s+", "", text)
    assert words in re.sub(r"\s+", "", answer)
    rest = after.partition("\n")[0]
    if not rest or rest[0] in " \t\r)]},;:.":  # else it may be kept apart from that
        assert text == text.rstrip()
    if rest.strip():
        assert "\n" not in text
    edited = before + text + after
    assert edited.startswith(before)
    assert edited.endswith(after)


@pytest.mark.long
@examples(sample=200, full=3000)
@given(
    before=code,
    after=code,
    parts=st.lists(st.sampled_from(CONTROL_TOKENS) | code, max_size=6),
)
def test_no_control_token_is_ever_offered(before: str, after: str, parts: list[str]) -> None:
    text = clean("".join(parts), Context(before, after, "python"))
    assert not any(token in text for token in CONTROL_TOKENS)


names = st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=8)


@pytest.mark.long
@examples(sample=200, full=2000)
@given(call=names, arguments=st.lists(names, min_size=1, max_size=3), rest=names)
def test_an_answer_that_runs_into_the_rest_of_the_line_stops_before_it(
    call: str, arguments: list[str], rest: str
) -> None:
    assume(rest not in arguments)
    wanted = ", ".join(arguments)
    for tail in (f", {rest})", f") + {rest}", f"): {rest}"):
        assert offered(f"{call}({CURSOR}{tail}", wanted + tail) == wanted


@pytest.mark.long
@examples(sample=200, full=2000)
@given(
    body=st.lists(names, min_size=1, max_size=4, unique=True),
    following=st.lists(names, min_size=1, max_size=4, unique=True),
    shown=st.integers(1, 4),
)
def test_an_answer_that_runs_into_the_next_lines_stops_before_them(
    body: list[str], following: list[str], shown: int
) -> None:
    assume(not set(body) & set(following))
    ours = "\n".join(f"    {name}.run()" for name in body)
    theirs = [f"    {name}.stop()" for name in following]
    repeated = "\n".join(theirs[:shown])
    file = "def f():" + CURSOR + "\n" + "\n".join(theirs) + "\n"
    assert offered(file, f"\n{ours}\n{repeated}") == "\n" + ours
