/** Folders that may not be written to: what that costs is told with the remedy, and the rest goes on. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { CANNOT_MOUNT, PYTHON, readOnly, VSCode, VSIX, type Options } from "./vscode";

/** Nobody makes folders here, nor does root. */
const CLOSED = "/sys";
const WEAK = "import yaml\n\n\ndef prices(text):\n    return yaml.load(text, Loader=yaml.Loader)\n";

test("where the engine's log cannot be written, its folder is named, and weaknesses are found all the same", async () => {
  await inShop({ environment: { XDG_STATE_HOME: CLOSED } }, async (code) => {
    await weakness(code);
    await code.page.keyboard.press("Control+End");
    await code.type("\ntotal = ");
    const toast = code.notification("The folder of the engine's log, /sys/qcn, cannot be made (Operation not permitted).");
    await toast.filter({ hasText: "Set XDG_STATE_HOME to a folder that you can write to." }).waitFor();
    await code.screenshot("no-log-folder");
  });
});

test("where nothing can be kept on disk that is told, and the folder is read", async () => {
  await inShop({ environment: { XDG_CACHE_HOME: CLOSED } }, async (code) => {
    await read(code);
    const toast = code.notification("contexts are not kept on disk in /sys/qcn");
    await toast.filter({ hasText: "Set XDG_CACHE_HOME to a folder that you can write to" }).waitFor();
    await code.screenshot("no-cache-folder");
  });
});

test("where the runtime folder is closed the engine is met in the one for temporary files", async () => {
  const temporary = mkdtempSync(join(tmpdir(), "qcn-t-"));
  try {
    await inShop({ environment: { XDG_RUNTIME_DIR: CLOSED, TMPDIR: temporary } }, async (code) => {
      await read(code);
      const sockets = readdirSync(temporary, { recursive: true, encoding: "utf8" });
      assert.equal(sockets.filter((name) => name.endsWith(".sock")).length, 1, sockets.join("\n"));
      assert.equal(await code.notification("qcn").count(), 0);
    });
  } finally {
    rmSync(temporary, { recursive: true });
  }
});

test("a folder that is for reading only is read, its weaknesses found and mended in the editor alone", { skip: CANNOT_MOUNT }, async () => {
  const shop = aShop(mkdtempSync(join(tmpdir(), "qcn-ro-")));
  const file = join(shop, "prices.py");
  try {
    await inShop({ mounts: () => readOnly(shop) }, async (code) => {
      await read(code);
      await weakness(code);
      await code.goTo(5, 20);
      await code.openCodeActions();
      await code.page.locator(".action-widget").getByText(/^Fix CWE-502/).waitFor();
      await code.page.keyboard.press("Enter");
      await code.page.locator(".squiggly-warning, .squiggly-error").first().waitFor({ state: "detached" });
      await code.page.keyboard.press("Control+s");
      await code.notification("Failed to save 'prices.py'").waitFor(); // by VS Code
      assert.equal(await code.notification("qcn:").count(), 0);
      assert.deepEqual([readFileSync(file, "utf8"), readdirSync(shop)], [WEAK, ["prices.py"]]);
    }, shop);
  } finally {
    rmSync(shop, { recursive: true });
  }
});

async function inShop(options: Options, body: (code: VSCode) => Promise<void>, shop?: string): Promise<void> {
  const settings = { "qcn.server.python": PYTHON, "qcn.context.tokens": 4000 };
  const code = await VSCode.start(VSIX, { settings, ...options });
  try {
    await code.open(shop ?? aShop(join(code.folder, "shop")), "prices.py");
    await code.ready();
    await body(code);
  } finally {
    await code.stop();
  }
}

function aShop(folder: string): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "prices.py"), WEAK);
  return folder;
}

async function weakness(code: VSCode): Promise<void> {
  await code.page.locator(".squiggly-warning, .squiggly-error").first().waitFor();
}

/** Return when the engine was started, and has read the folder in front of a completion. */
async function read(code: VSCode): Promise<void> {
  await code.page.keyboard.press("Control+End");
  await code.type("\ntotal = ");
  await code.statusBarItem.filter({ hasText: /\d%/ }).waitFor();
}
