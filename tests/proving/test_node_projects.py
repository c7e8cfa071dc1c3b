"""JavaScript projects' tests, run for real in the sandbox."""

import shutil
from pathlib import Path

import pytest
from proving_support import needs_bubblewrap, proving_ground, write

from qcn_lsp.proving.suites import TestSuite, find_suites

pytestmark = [
    needs_bubblewrap,
    pytest.mark.skipif(shutil.which("npm") is None, reason="Node and npm are not installed"),
]
FILES = {
    "package.json": '{"name": "shop", "version": "1.0.0", "scripts": {"test": "node --test"}}',
    "prices.js": "exports.add = (a, b) => a + b;\n",
    "test/prices.test.js": """\
const { describe, test } = require("node:test");
const assert = require("node:assert");
const { add } = require("../prices.js");

test("adds", () => assert.equal(add(1, 2), 3));
describe("edges", () => {
  test("of nothing", () => assert.equal(add(0, 0), 0));
  test.skip("later", () => {});
});
""",
}


async def test_node_names_the_tests_that_a_change_breaks(tmp_path: Path) -> None:
    root = write(tmp_path / "shop", FILES)
    suite, *_ = find_suites(root)
    assert suite == TestSuite("node")
    ground = await proving_ground()
    async with ground.deploy(root, {}) as view:
        before = await view.run_tests(suite)
    assert before.run.succeeded, before.run.log
    assert before.passed == {"adds", "edges > of nothing"}
    assert not before.failed
    assert before.skipped == {"edges > later"}
    edits = {"prices.js": "exports.add = (a, b) => a - b;\n"}
    async with ground.deploy(root, edits) as view:
        after = await view.run_tests(suite)
    assert after.passed == {"edges > of nothing"}
    assert after.failed == {"adds"}
    assert "adds" in after.run.log


async def test_npm_runs_the_packages_own_command(tmp_path: Path) -> None:
    package = FILES["package.json"].replace("node --test", "node --test && echo well")
    root = write(tmp_path / "shop", {**FILES, "package.json": package})
    (suite,) = find_suites(root)
    ground = await proving_ground()
    async with ground.deploy(root, {}) as view:
        outcome = await view.run_tests(suite)
    assert outcome.run.succeeded
    assert not outcome.named
    assert "well" in outcome.run.log
    async with ground.deploy(root, {"prices.js": "exports.add = () => 0;\n"}) as view:
        assert not (await view.run_tests(suite)).run.succeeded
