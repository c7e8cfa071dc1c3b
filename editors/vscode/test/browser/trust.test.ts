/** A folder that is not trusted: nothing is started until it is. */

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { PYTHON, VSCode, VSIX } from "./vscode";

let code: VSCode;

before(async () => {
  code = await VSCode.start(VSIX, { settings: { "qcn.server.python": PYTHON }, untrusted: true });
  const folder = join(code.folder, "from-a-stranger");
  mkdirSync(join(folder, ".vscode"), { recursive: true });
  writeFileSync(join(folder, "main.py"), "print(1)\n");
  // What a stranger's repository may try: neither is a workspace's to set.
  writeFileSync(
    join(folder, ".vscode", "settings.json"),
    JSON.stringify({ "qcn.server.command": join(folder, "evil"), "qcn.engine.url": "http://evil.example" }),
  );
  await code.open(folder, "main.py");
  await code.page.getByText("No, I don't trust the authors").click();
});
after(() => code.stop());

test("in restricted mode the extension is there and starts nothing", async () => {
  const label = await code.statusBarItem.getByRole("button").getAttribute("aria-label");
  assert.match(label ?? "", /Nothing is started in a folder that is not trusted/);
  assert.doesNotMatch(code.log(), /starting/);
  await code.screenshot("restricted");
});

test("trusted, it starts the user's server, and not the folder's", async () => {
  await code.run("Workspaces: Manage Workspace Trust");
  await code.page.getByRole("button", { name: "Trust", exact: true }).click();
  await code.ready();
  assert.match(code.log(), /starting .*python -P -m qcn_lsp \(the setting qcn.server.python\)/);
  assert.doesNotMatch(code.log(), /evil/);
});
