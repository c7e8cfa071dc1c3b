/** Ghost text from qcn-nano in this repository, in a real VS Code. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { aRepository, PYTHON, VSCode, VSIX, withoutSpace } from "./vscode";

/** Where the small model has something to say, if not at the first of these places then at another. */
const PLACES = [
  "def parent(path: Path) -> Path:\n    return",
  "class Address:\n    def __init__(self, host: str, port: int) -> None:\n        self.",
  "def is_local(uri: str) -> bool:\n    if",
  "for part in parts:\n    if part",
  "try:\n    parts = urlsplit(uri)\nexcept",
];

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
  assert.notEqual(await suggestion(), "");
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

test("when the engine is killed, the next suggestion starts another", async () => {
  await suggestion();
  const [engine, ...others] = code.engines();
  assert.ok(engine !== undefined && others.length === 0);
  process.kill(engine, "SIGKILL");
  assert.notEqual(await suggestion(), "");
  const [next] = code.engines();
  assert.ok(next !== undefined && next !== engine);
  await code.ready();
  await code.screenshot("after-a-crash-of-the-engine");
});

/** Have ghost text shown, on lines of its own; returns it without white space. */
async function suggestion(wanted = (_shown: string) => true): Promise<string> {
  for (const place of PLACES) {
    await code.page.keyboard.press("Escape");
    await code.page.keyboard.press("Control+End");
    await code.type(`\n\n${place} `);
    const shown = (await code.suggests()) ? await code.shownGhost() : "";
    if (shown !== "" && wanted(shown)) {
      return shown;
    }
  }
  throw new Error(`the model has nothing to say anywhere; the log:\n${code.log()}`);
}

/** Whether there is something behind the first word of a suggestion. */
function severalWords(shown: string): boolean {
  return (shown.match(/\w+|[^\w]+/g) ?? []).length > 2;
}

/** Have ghost text shown and accept of it; returns what was shown, and what came into the file. */
async function accepted(accept: () => Promise<void>, wanted = (_shown: string) => true): Promise<[string, string]> {
  const shown = await suggestion(wanted);
  const before = await code.saved(file);
  await accept();
  await code.page.locator(".tab.active.dirty").waitFor();
  const after = await code.saved(file);
  assert.ok(after.startsWith(before), after.slice(-200));
  return [shown, after.slice(before.length)];
}
