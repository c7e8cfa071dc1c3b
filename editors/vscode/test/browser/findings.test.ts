/** A weakness is underlined, and its fix applied. */
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
