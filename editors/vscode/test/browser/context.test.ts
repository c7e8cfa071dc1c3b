/** What the model sees, drawn in VS Code's panel from a repository that is read. */

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import type { FrameLocator } from "playwright-core";

import { PYTHON, VSCode, VSIX } from "./vscode";

let code: VSCode;

before(async () => {
  const settings = { "qcn.server.python": PYTHON, "qcn.context.tokens": 6000, "window.autoDetectColorScheme": true };
  code = await VSCode.start(VSIX, { settings });
  const shop = join(code.folder, "shop");
  mkdirSync(join(shop, "lib"), { recursive: true });
  writeFileSync(join(shop, "lib", "prices.py"), "def price(item):\n    return item.price\n\n\n".repeat(20));
  writeFileSync(join(shop, "lib", "baskets.py"), "class Basket:\n    def add(self, item):\n        self.items.append(item)\n\n".repeat(20));
  writeFileSync(join(shop, "main.py"), "from lib.prices import price\n\nprint(price(None))\n");
  writeFileSync(join(shop, ".env"), "PASSWORD=hunter2\n");
  await code.open(shop, "main.py");
  await code.ready();
});
after(() => code.stop());

test("the panel says why there is nothing yet, and then shows each part", async () => {
  await code.run("qcn: Show What the Model Sees");
  const page = view();
  await page.locator("#problem", { hasText: "from the first completion" }).waitFor();
  await code.run("View: Open Previous Editor");
  await code.page.keyboard.press("Control+End");
  await code.type("\nprint(price( ");
  await code.statusBarItem.filter({ hasText: /\d%/ }).waitFor();
  await code.run("qcn: Show What the Model Sees");
  await page.locator("#strip .segment").first().waitFor();
  const names = await page.locator("#strip .segment").evaluateAll((marks) => marks.map((mark) => mark.getAttribute("aria-label")));
  assert.ok(names.some((name) => name?.startsWith("lib/prices.py, base, ")), names.join("\n"));
  await page.locator("#latency rect").first().waitFor();
  assert.match((await page.locator("#skipped").textContent()) ?? "", /usual name for secrets/);
  await code.screenshot("context-light");
});

test("in a dark theme it is dark", async () => {
  await code.page.emulateMedia({ colorScheme: "dark" });
  await view().locator("body.vscode-dark").waitFor();
  await code.screenshot("context-dark");
});

function view(): FrameLocator {
  return code.page.frameLocator("iframe.webview.ready").frameLocator("iframe#active-frame");
}
