/** Ghost text from qcn-nano in this repository, in a real VS Code. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { aRepository, PYTHON, VSCode, VSIX, withoutSpace } from "./vscode";

let code: VSCode;
let file: string;

before(async () => {
  code = await VSCode.start(VSIX, { settings: { "qcn.server.python": PYTHON } });
  const repository = aRepository(code.folder);
  file = join(repository, "qcn_lsp", "uris.py");
  await code.noteStatusBar();
  await code.open(repository, "qcn_lsp/uris.py");
  await code.ready();
});
after(() => code.stop());

test("ghost text comes by itself once the engine has loaded, and the loading is shown", async () => {
  assert.notEqual(await code.suggestion(), "");
  await code.screenshot("ghost-text");
  const seen = await code.seenInStatusBar();
  assert.ok(seen.some((text) => text.includes("Loading qcn-nano")), seen.join("\n"));
});

test("Tab takes the whole suggestion", async () => {
  const [shown, taken] = await accepted(() => code.page.keyboard.press("Tab"));
  assert.equal(withoutSpace(taken), shown);
});

test("Ctrl+Right takes a word, and the rest stays", async () => {
  const [shown, taken] = await accepted(() => code.page.keyboard.press("Control+ArrowRight"), severalWords);
  assert.ok(shown.startsWith(withoutSpace(taken)), `${taken} of ${shown}`);
  assert.ok(withoutSpace(taken).length > 0 && withoutSpace(taken).length < shown.length, `${taken} of ${shown}`);
});

test("a line is taken", async () => {
  const [shown, taken] = await accepted(() => code.page.keyboard.press("Control+Alt+ArrowRight"));
  assert.ok(shown.startsWith(withoutSpace(taken)), `${taken} of ${shown}`);
  assert.notEqual(withoutSpace(taken), "");
  assert.ok(taken.trim().split("\n").length === 1, taken);
});

test("the menu in the status bar says how things stand, and what can be done", async () => {
  await code.statusBarItem.getByRole("button").click();
  const menu = code.page.locator(".quick-input-widget");
  await menu.getByRole("option", { name: "Pause" }).waitFor();
  const entries = await menu.getByRole("option").allTextContents();
  assert.deepEqual(
    entries.map((entry) => entry.trim()),
    [
      "Pause",
      "Show what the model sees",
      "Choose the model",
      "Restart the language server",
      "Show the log",
      "Open the settings",
      "Collect a report for an issue",
      "First steps",
    ],
  );
  assert.match((await menu.locator("input").first().getAttribute("placeholder")) ?? "", /Model: qcn-nano\./);
  await code.screenshot("menu");
  await code.page.keyboard.press("Escape");
});

test("the walkthrough leads from the server to the model and what it sees", async () => {
  await code.run("View: Toggle Primary Side Bar Visibility");
  await code.run("qcn: First Steps");
  for (const step of ["Install the language server", "Write code", "Choose the model", "Look at what the model sees"]) {
    await code.page.getByRole("button", { name: step }).first().waitFor();
  }
  await code.page.getByRole("checkbox", { name: "Install the language server: Completed" }).waitFor();
  await code.screenshot("walkthrough");
  await code.page.getByRole("tab", { name: "uris.py" }).click();
});

test("when the engine is killed, the next suggestion starts another", async () => {
  await code.suggestion();
  const [engine, ...others] = code.engines();
  assert.ok(engine !== undefined && others.length === 0);
  process.kill(engine, "SIGKILL");
  assert.notEqual(await code.suggestion(), "");
  const [next] = code.engines();
  assert.ok(next !== undefined && next !== engine);
  await code.ready();
  await code.screenshot("after-a-crash-of-the-engine");
});

/** Whether there is something behind the first word of a suggestion. */
function severalWords(shown: string): boolean {
  return (shown.match(/\w+|[^\w]+/g) ?? []).length > 2;
}

/** Have ghost text shown and accept of it; returns what was shown, and what came into the file. */
async function accepted(accept: () => Promise<void>, wanted = (_shown: string) => true): Promise<[string, string]> {
  const shown = await code.suggestion(wanted);
  const before = await code.saved(file);
  await accept();
  await code.page.locator(".tab.active.dirty").waitFor();
  const after = await code.saved(file);
  assert.ok(after.startsWith(before), after.slice(-200));
  return [shown, after.slice(before.length)];
}
