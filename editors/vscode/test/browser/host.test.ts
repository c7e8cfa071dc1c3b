/** Runs the tests that need VS Code's API inside its extension host. */

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { CLONE, PYTHON, VSCode, VSIX } from "./vscode";

test("the extension does what it should with every kind of document", async () => {
  const code = await VSCode.start(VSIX, { settings: { "qcn.server.python": PYTHON }, smokeTest: true });
  const said: string[] = [];
  try {
    for (const name of ["shop", "other"]) {
      mkdirSync(join(code.folder, name));
    }
    const workspace = join(code.folder, "both.code-workspace");
    writeFileSync(workspace, JSON.stringify({ folders: [{ path: "shop" }, { path: "other" }] }));
    await code.page.exposeFunction("codeAutomationLog", (_kind: string, words: unknown[]) => said.push(words.join(" ")));
    const ended = new Promise<number>((resolve) => void code.page.exposeFunction("codeAutomationExit", resolve));
    const extension = join(CLONE, "editors", "vscode");
    await code.goto({ workspace }, [
      ["extensionDevelopmentPath", code.remote(extension)],
      ["extensionTestsPath", code.remote(join(extension, "build", "host", "index.js"))],
    ]);
    assert.equal(await ended, 0, said.join("\n"));
    console.log(said.filter((line) => line.includes("ok: ")).join("\n"));
  } finally {
    await code.stop();
  }
});
