import assert from "node:assert/strict";
import { test } from "node:test";

import { unfit } from "../../src/versions";

test("before 1.0 a minor version must be the same, after it a major one; a patch may differ", () => {
  const fits = (server: string, extension: string): boolean => unfit({ name: "qcn-lsp", version: server }, extension) === undefined;
  assert.ok(fits("0.1.0", "0.1.7"));
  assert.ok(!fits("0.2.0", "0.1.0"));
  assert.ok(fits("1.4.0", "1.2.0"));
  assert.ok(!fits("2.0.0", "1.9.0"));
  assert.ok(!fits("", "0.1.0"));
});

test("what is no qcn-lsp is told by its name", () => {
  assert.match(unfit({ name: "pylsp", version: "0.1.0" }, "0.1.0") ?? "", /no qcn-lsp but "pylsp"/);
  assert.match(unfit(undefined, "0.1.0") ?? "", /no qcn-lsp\./);
});
