"""The benchmark on others' texts: how marks are read, and what is fetched is what was meant."""

import re
import tarfile
from pathlib import Path

import pytest
import yaml

from benchmarks import elsewhere, registries
from benchmarks.registries import FetchError, Package, fetched, pinned, texts


def test_every_release_that_is_named_is_pinned_and_both_halves_have_some() -> None:
    listed = yaml.safe_load((elsewhere.DATA / "releases.yml").read_text(encoding="utf-8"))
    pins = pinned()
    for one in listed:
        for kind in ("weak", "fixed"):
            for version, spots in one.get(kind, {}).items():
                assert pins[one["package"], version].registry == one["registry"]
                assert all(re.fullmatch(r"[^:]+:\d+(?:-\d+)?", spot) for spot in spots)
    assert {elsewhere.is_held_out(one["package"]) for one in listed} == {True, False}
    assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in pins.values())
    for packages in elsewhere.NOISE.values():
        assert packages.keys() <= pins.keys()


def test_the_line_below_an_annotation_is_weak_or_safe() -> None:
    text = "# ruleid: bad-call\nf(x)\n\n    // ok: bad-call\n    f(1)\n"
    places = list(elsewhere._annotated(text))
    assert [(one.name, one.weak, one.first, one.last) for one in places] == [
        ("bad-call", True, 2, 2),
        ("bad-call", False, 5, 5),
    ]


def test_texts_are_read_from_lists_of_texts_and_counts_without_running_them() -> None:
    text = "raise SystemExit\nCASES = [('a(b)', 0), ('a(\\nc)', 2)]\n"
    found = list(elsewhere._counted_texts("part", "c", text))
    assert [(one.text, one.places[0].weak, one.places[0].last) for one in found] == [
        ("a(b)", False, 1),
        ("a(\nc)", True, 2),
    ]


def test_texts_are_read_from_an_eslint_rules_test() -> None:
    text = r"""
        const bad = 'eval("\u202e")';
        tester.run(name, rule, {
          valid: ['a\'b', `two
        lines`, `${made}`],
          invalid: [{ code: bad, errors: [{}] }, { code: "eval(x)" }],
        });"""
    found = list(elsewhere._eslint_texts("package", "rule", 95, text))
    assert [(one.text, one.places[0].weak) for one in found] == [
        ("a'b", False),
        ("two\n        lines", False),
        ('eval("\u202e")', True),
        ("eval(x)", True),
    ]
    assert {one.places[0].name for one in found} == {"CWE-95 rule"}


def test_a_finding_that_touches_a_place_finds_it() -> None:
    assert elsewhere.touches([(1, 2), (7, 9)], 9, 12)
    assert not elsewhere.touches([(1, 2), (7, 9)], 3, 6)


def test_an_archive_of_another_digest_is_refused_and_one_that_is_meant_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "CACHE", tmp_path)
    folder = tmp_path / "pypi-a-1"
    folder.mkdir()
    (tmp_path / "a.py").write_text("pass\n")
    (tmp_path / "picture").write_bytes(b"\xff\xfe")
    with tarfile.open(folder / "a-1.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "a.py", "a-1/a.py")
        packed.add(tmp_path / "picture", "a-1/picture")
    with pytest.raises(FetchError, match=r"digest [0-9a-f]{64}, not 0000") as refused:
        fetched(Package("pypi", "a", "1", "0000"))
    digest = str(refused.value).split("digest ")[1][:64]
    assert list(texts(fetched(Package("pypi", "a", "1", digest)))) == [("a.py", "pass\n")]
