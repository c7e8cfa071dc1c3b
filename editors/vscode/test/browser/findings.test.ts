/** A weakness is underlined, and its fix applied. */

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { PYTHON, VSCode, VSIX } from "./vscode";

let code: VSCode;
let file: string;

before(async () => {
  code = await VSCode.start(VSIX, { settings: { "qcn.server.python": PYTHON } });
  const folder = join(code.folder, "shop");
  mkdirSync(folder);
  file = join(folder, "prices.py");
  writeFileSync(file, "import yaml\n\n\ndef prices(text):\n    return yaml.load(text, Loader=yaml.Loader)\n");
  await code.open(folder, "prices.py");
  await code.ready();
});
after(() => code.stop());

test("a weakness is underlined, with what is wrong in words", async () => {
  await code.page.locator(".squiggly-warning, .squiggly-error").first().waitFor();
  await code.run("Problems: Focus on Problems View");
  await code.page.locator(".markers-panel .monaco-list-row", { hasText: /yaml/i }).first().waitFor();
  await code.screenshot("finding");
});

test("its fix is offered with the evidence it has, and applied", async () => {
  await code.page.keyboard.press("Control+1");
  await code.goTo(5, 20);
  await code.openCodeActions();
  await code.page.locator(".action-widget").getByText(/^Fix CWE-502: .*\(the finding is gone/).waitFor();
  await code.screenshot("fix-menu");
  await code.page.keyboard.press("Enter");
  await code.page.locator(".squiggly-warning, .squiggly-error").first().waitFor({ state: "detached" });
  await code.screenshot("fixed");
  assert.match(await code.saved(file), /return yaml\.safe_load\(text\)|Loader=yaml\.SafeLoader/);
});
