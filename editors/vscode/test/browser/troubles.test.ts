/** What can be wrong with the server: each has one message, and the remedy as a button. */

import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { PYTHON, VSCode, VSIX } from "./vscode";

const folders: string[] = [];
after(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

test("a server that is not installed is offered", async () => {
  // Nothing of this machine's is found where the search path leads nowhere.
  await inVSCode({ environment: { PATH: "/nowhere", HOME: aFolder() } }, async (code) => {
    const toast = code.notification("The language server qcn-lsp is not installed on this machine.");
    await toast.waitFor();
    await code.statusBarItem.filter({ hasText: "not installed" }).waitFor();
    await code.page.getByText("Install the language server").first().waitFor(); // the walkthrough
    await code.screenshot("not-installed");
    await toast.getByRole("button", { name: "Install…" }).click();
    await code.page.locator(".quick-input-list").getByText("Choose a Python…").waitFor();
  });
});

test("a program that is not there is told by the setting that names it", async () => {
  await inVSCode({ settings: { "qcn.server.command": "/nowhere/qcn-lsp" } }, async (code) => {
    const toast = code.notification("qcn.server.command: there is no program at /nowhere/qcn-lsp.");
    await toast.getByRole("button", { name: "Open Settings" }).waitFor();
  });
});

test("a server of another version is not used", async () => {
  await withServer(answering("qcn-lsp", "0.99.0"), async (code) => {
    const toast = code.notification(/The language server is version 0\.99\.0; this extension works with 0\.\d+\.x\./);
    await toast.getByRole("button", { name: "Install…" }).waitFor();
    await code.statusBarItem.filter({ hasText: "wrong version" }).waitFor();
    await code.screenshot("wrong-version");
  });
});

test("a program that is no qcn-lsp is not used", async () => {
  await withServer(answering("otherls", "0.1.0"), async (code) => {
    await code.notification('What was started is no qcn-lsp but "otherls".').waitFor();
  });
});

test("a server that keeps on crashing is given up with one message, and started again when asked", async () => {
  await withServer("process.exit(3);", async (code, file) => {
    const toast = code.notification("The language server ended 5 times within three minutes and is not started again.");
    await toast.getByRole("button", { name: "Restart" }).waitFor();
    const toasts = await code.page.locator(".notification-toast").allTextContents();
    assert.equal(toasts.length, 1, toasts.join("\n"));
    assert.equal(starts(code), 1);
    await code.statusBarItem.filter({ hasText: "stopped" }).waitFor();
    await code.screenshot("crash-loop");
    writeFileSync(file, script(answering("qcn-lsp", "0.1.0")));
    await toast.getByRole("button", { name: "Restart" }).click();
    await code.statusBarItem.filter({ hasNotText: "stopped" }).waitFor();
    assert.equal(starts(code), 2);
  });
});

test("a model that is not there is told with its path, once something is completed", async () => {
  const settings = { "qcn.server.python": PYTHON, "qcn.models.completion": "/nowhere/Qwen3-Coder-Next" };
  await inVSCode({ settings }, async (code) => {
    await code.ready("Qwen3-Coder-Next");
    await code.page.keyboard.press("Control+End");
    await code.type("\ntotal = ");
    await code.notification("/nowhere/Qwen3-Coder-Next").waitFor();
    await code.screenshot("no-such-model");
  });
});

test("mistakes in the settings are told, and only those settings fall back", async () => {
  const settings = { "qcn.server.python": PYTHON, "qcn.completion.maxTokens": 0, "qcn.models": { "complete": "x" } };
  await inVSCode({ settings }, async (code) => {
    await code.notification("qcn.completion.maxTokens: expected a whole number from 1 to 2048, got 0.").waitFor();
    await code.ready();
  });
});

interface Wrong {
  readonly settings?: Record<string, unknown>;
  readonly environment?: Record<string, string>;
}

async function inVSCode(wrong: Wrong, body: (code: VSCode) => Promise<void>): Promise<void> {
  const code = await VSCode.start(VSIX, wrong);
  try {
    const folder = join(code.folder, "shop");
    mkdirSync(folder);
    writeFileSync(join(folder, "main.py"), "print(1)\n");
    await code.open(folder, "main.py");
    await body(code);
  } finally {
    await code.stop();
  }
}

/** VS Code with a server that runs a script of ours; the body is told where it lies. */
async function withServer(source: string, body: (code: VSCode, file: string) => Promise<void>): Promise<void> {
  const file = join(aFolder(), "qcn-lsp");
  writeFileSync(file, script(source));
  chmodSync(file, 0o755);
  await inVSCode({ settings: { "qcn.server.command": file } }, (code) => body(code, file));
}

function script(source: string): string {
  return `#!${process.execPath}\n${source}\n`;
}

/** The source of a server that does nothing but say its name and version. */
function answering(name: string, version: string): string {
  const serverInfo = JSON.stringify({ name, version });
  return `
    let input = Buffer.alloc(0);
    const send = (message) => {
      const body = JSON.stringify({ jsonrpc: "2.0", ...message });
      process.stdout.write(\`Content-Length: \${Buffer.byteLength(body)}\\r\\n\\r\\n\${body}\`);
    };
    process.stdin.on("data", (chunk) => {
      input = Buffer.concat([input, chunk]);
      for (;;) {
        const end = input.indexOf("\\r\\n\\r\\n");
        const length = Number(/Content-Length: (\\d+)/.exec(input.subarray(0, Math.max(0, end)))?.[1]);
        if (end < 0 || input.length < end + 4 + length) return;
        const { id, method } = JSON.parse(input.subarray(end + 4, end + 4 + length));
        input = input.subarray(end + 4 + length);
        if (method === "initialize") send({ id, result: { capabilities: {}, serverInfo: ${serverInfo} } });
        else if (method === "exit") process.exit(0);
        else if (id !== undefined) send({ id, result: null });
      }
    });`;
}

/** How often the extension has set out to start a server; restarts after a crash apart. */
function starts(code: VSCode): number {
  return code.log().match(/\[info\] starting /g)?.length ?? 0;
}

function aFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "qcn-test-"));
  folders.push(folder);
  return folder;
}
