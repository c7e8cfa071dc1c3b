/**
 * *Install…*, from the offer to ghost text: by uv, by pipx, by a Python of the machine's, from an index
 * in a folder (`tests/editors/local_index.py`). And what stands in its way.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { test } from "node:test";

import type { Locator } from "playwright-core";

import { CANNOT_MOUNT, CLONE, PYTHON, readOnly, VSCode, VSIX, type Options } from "./vscode";

const INDEX = process.env["QCN_INDEX"] ?? join(CLONE, ".cache", "index");
const STORAGE = ["User", "globalStorage", "qcn-lsp.qcn"];

for (const tool of ["uv", "pipx"]) {
  test(`installed with ${tool} it starts, and there is ghost text`, async () => {
    await inVSCode([tool, "python3"], {}, async (code) => {
      await offered(code);
      await code.screenshot(`install-with-${tool}`);
      await choice(code, `Install with ${tool}`).click();
      await installed(code, /home\/\.local\/bin/);
      assert.equal(code.log().includes("> UV_TORCH_BACKEND=auto "), tool === "uv");
    });
  });
}

test("a chosen Python that lacks it makes an environment for it, in which it starts", async () => {
  await inVSCode([], {}, async (code, bin) => {
    await offered(code);
    await choosePython(code, program(bin, "mine", `exec "${basePython()}" "$@"`));
    await installed(code, /the extension's own environment/);
  });
});

test("a Python in which it is installed is chosen, and starts it", async () => {
  await inVSCode([], {}, async (code, bin) => {
    await offered(code);
    await choosePython(code, program(bin, "mine", `exec "${PYTHON}" "$@"`));
    await installed(code, /the setting qcn\.server\.python/);
  });
});

test("without uv, pipx and Python that is said, with where to get them", async () => {
  await inVSCode([], {}, async (code) => {
    await offered(code);
    await hint(code, "No uv or pipx. There is no Python on the search path.");
    await choice(code, "Get uv, which brings a Python along").waitFor();
    await code.screenshot("install-nothing-there");
  });
});

test("a Python that is too old is told with its version", async () => {
  await inVSCode([], {}, async (code, bin) => {
    const old = program(bin, "python3", "echo 3.9");
    await offered(code);
    await hint(code, `${old} is Python 3.9; the language server needs 3.11 or newer.`);
    await choosePython(code, old);
    await code.notification(`${old} is Python 3.9; the language server needs 3.11 or newer.`).waitFor();
  });
});

test("what is no Python is told as that", async () => {
  await inVSCode([], {}, async (code, bin) => {
    const other = program(bin, "cat", "exit 1");
    await offered(code);
    await choosePython(code, other);
    await code.notification(`${other} is no Python that can be started.`).waitFor();
  });
});

test("where pip fails the reason is told, the log shows it all, and no half environment stays", async () => {
  await inVSCode(["python3"], { environment: { PIP_FIND_LINKS: "/nowhere" } }, async (code) => {
    await offered(code);
    await choice(code, "Install with Python 3").click();
    const toast = code.notification("pip could not install the language server: No matching distribution found for ");
    await toast.getByRole("button", { name: "Install Otherwise…" }).waitFor();
    await code.screenshot("install-failed");
    await toast.getByRole("button", { name: "Show Log" }).click();
    await code.page.locator(".output-view, .panel").getByText("No matching distribution found for").first().waitFor();
    assert.match(code.log(), /> .*python3 -m venv /);
    assert.deepEqual(readdirSync(join(code.folder, "data", "data", ...STORAGE)), []);
    await code.statusBarItem.filter({ hasText: "not installed" }).waitFor();
  });
});

test("a full disk is told as that", { skip: CANNOT_MOUNT }, async () => {
  const mounts = (data: string): string[] => ["--size", String(24 << 20), "--tmpfs", join(data, ...STORAGE)];
  await inVSCode(["python3"], { mounts }, async (code) => {
    await offered(code);
    await choice(code, "Install with Python 3").click();
    const toast = code.notification(/could not install the language server: .*No space left on device/);
    await toast.getByRole("button", { name: "Show Log" }).waitFor();
  });
});

test("where the extension's storage cannot be written that is told, with its path", { skip: CANNOT_MOUNT }, async () => {
  const storage = (data: string): string => join(data, ...STORAGE);
  const mounts = (data: string): string[] => {
    mkdirSync(storage(data), { recursive: true });
    return readOnly(storage(data));
  };
  await inVSCode(["python3"], { mounts }, async (code) => {
    await offered(code);
    await choice(code, "Install with Python 3").click();
    const path = join(storage(join(code.folder, "data", "data")), "server");
    const toast = code.notification(`${path} cannot be made`);
    await toast.filter({ hasText: "EROFS: read-only file system" }).waitFor();
    await toast.getByRole("button", { name: "Install Otherwise…" }).click();
    await choice(code, "Get uv, which brings a Python along").waitFor();
    assert.ok(!existsSync(path));
  });
});

test("where it cannot be written the server that is there goes on", { skip: CANNOT_MOUNT }, async () => {
  const mounts = (data: string): string[] => {
    mkdirSync(join(data, ...STORAGE), { recursive: true });
    return readOnly(join(data, ...STORAGE));
  };
  await inVSCode(["python3"], { mounts, settings: { "qcn.server.python": PYTHON } }, async (code) => {
    await code.ready();
    await code.run("qcn: Install the Language Server");
    await choice(code, "Install with Python 3").click();
    await code.notification("cannot be made").waitFor();
    assert.notEqual(await code.suggestion(), "");
  });
});

/** VS Code on a machine that has these programs, a home folder and the index, and nothing else. */
async function inVSCode(programs: string[], options: Options, body: (code: VSCode, bin: string) => Promise<void>): Promise<void> {
  const machine = mkdtempSync(join(tmpdir(), "qcn-m-"));
  mkdirSync(join(machine, "home"));
  const code = await VSCode.start(VSIX, {
    ...options,
    environment: {
      PATH: aSearchPath(join(machine, "bin"), programs),
      HOME: join(machine, "home"),
      PYTHONPATH: "",
      PIP_CONFIG_FILE: "/dev/null",
      PIP_NO_INDEX: "1",
      PIP_NO_COMPILE: "1",
      PIP_FIND_LINKS: join(INDEX, "wheels"),
      UV_NO_CONFIG: "1",
      UV_OFFLINE: "1",
      UV_FIND_LINKS: join(INDEX, "wheels"),
      UV_PYTHON_DOWNLOADS: "never",
      ...options.environment,
    },
  });
  try {
    const shop = join(code.folder, "shop");
    mkdirSync(shop);
    writeFileSync(join(shop, "main.py"), "from pathlib import Path\nfrom urllib.parse import urlsplit\n");
    await code.open(shop, "main.py");
    await body(code, join(machine, "bin"));
  } finally {
    await code.stop();
    rmSync(machine, { recursive: true });
  }
}

function aSearchPath(folder: string, programs: string[]): string {
  mkdirSync(folder);
  for (const name of programs) {
    symlinkSync(name === "python3" ? basePython() : join(INDEX, "tools", "bin", name), join(folder, name));
  }
  return folder;
}

/** The Python that the tests' own environment was made with. */
function basePython(): string {
  const { stdout } = spawnSync(PYTHON, ["-c", "import os, sys; print(os.path.realpath(sys.executable))"], { encoding: "utf8" });
  return stdout.trim();
}

/** A program that runs a line of shell; returns its path. */
function program(folder: string, name: string, line: string): string {
  const file = join(folder, name);
  writeFileSync(file, `#!/bin/sh\n${line}\n`);
  chmodSync(file, 0o755);
  return file;
}

/** Take the offer that is made where no server is found. */
async function offered(code: VSCode): Promise<void> {
  const toast = code.notification("The language server qcn-lsp is not installed on this machine.");
  await toast.getByRole("button", { name: "Install…" }).click();
  await choice(code, "Choose a Python…").waitFor();
}

/** Return when what was installed runs, from where it should, and there is ghost text. */
async function installed(code: VSCode, where: RegExp): Promise<void> {
  await code.ready();
  const started = /starting .* \((.*)\)$/m.exec(code.log())?.[1] ?? "";
  assert.match(started, where);
  await code.page.getByRole("tab", { name: "main.py" }).click();
  assert.notEqual(await code.suggestion(), "");
}

function choice(code: VSCode, label: string): Locator {
  return code.page.locator(".quick-input-list .monaco-list-row").filter({ hasText: label }).first();
}

/** What stands above the choices, or in the place of what is typed. */
async function hint(code: VSCode, text: string): Promise<void> {
  const input = code.page.locator(".quick-input-widget input").first();
  await input.waitFor();
  assert.ok((await input.getAttribute("placeholder"))?.includes(text), (await input.getAttribute("placeholder")) ?? "");
}

/**
 * Choose a Python in the dialog for files that VS Code shows where it has none of the system's. It
 * draws the beginning of a folder only: the file must lie among few.
 */
async function choosePython(code: VSCode, file: string): Promise<void> {
  await choice(code, "Choose a Python…").click();
  const dialog = code.page.locator(".quick-input-widget");
  await dialog.getByText("A Python", { exact: true }).waitFor();
  await dialog.locator(".monaco-list-row").getByText("main.py").waitFor(); // it begins in the workspace
  const input = dialog.locator("input").first();
  await input.fill(file);
  // It looks into the folder first, and takes nothing before it has.
  await dialog.locator(".monaco-list-row").getByText(basename(file), { exact: true }).first().waitFor();
  await input.press("Enter");
  await dialog.waitFor({ state: "hidden" });
}
