import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { examine, findPython, withoutModules, type Python } from "../../src/pythons";
import { reasonIn, runSteps } from "../../src/running";
import { waysOf } from "../../src/tools";

const folder = mkdtempSync(join(tmpdir(), "qcn-unit-"));
after(() => rmSync(folder, { recursive: true }));

/** A program that writes these lines; returns its path. */
function program(name: string, ...lines: string[]): string {
  const file = join(folder, name);
  writeFileSync(file, `#!/bin/sh\n${lines.map((line) => `echo '${line}'`).join("\n")}\n`);
  chmodSync(file, 0o755);
  return file;
}

function problemOf(python: Python): string {
  return "problem" in python ? python.problem : "";
}

test("a Python says what it can be used for, and what is none is told as that", () => {
  const good = program("good", "3.12", "qcn_lsp venv ensurepip");
  assert.deepEqual(examine(good, folder), { program: good, version: "3.12", serves: true, makesEnvironments: true });
  assert.match(problemOf(examine(program("old", "3.9"), folder)), /old is Python 3\.9; the language server needs 3\.11 or newer/);
  assert.match(problemOf(examine(program("older", "2.7"), folder)), /is Python 2\.7/);
  assert.match(problemOf(examine(program("other", "usage: other"), folder)), /other is no Python that can be started/);
  assert.match(problemOf(examine(join(folder, "nowhere"), folder)), /nowhere is no Python that can be started/);
});

test("one that lacks the modules for environments is told with the package that brings them", () => {
  const bare = examine(program("bare", "3.11", ""), folder);
  assert.match(problemOf(withoutModules(bare)), /venv and ensurepip are missing \(on Debian and Ubuntu the package python3\.11-venv/);
});

test("the first Python of the search path that will do is found, else the reason of the first", () => {
  const here = {
    platform: "linux" as const,
    home: "/nowhere",
    searchPath: folder,
    workspaceFolders: [],
    environment: "/nowhere",
    isExecutable: (file: string) => [join(folder, "python3"), join(folder, "python3.12")].includes(file),
  };
  program("python3", "3.9");
  const newer = program("python3.12", "3.12", "venv ensurepip");
  assert.equal(findPython(here, folder).program, newer);
  program("python3.12", "3.12", "venv");
  assert.match(problemOf(findPython(here, folder)), /python3 is Python 3\.9/);
  assert.match(problemOf(findPython({ ...here, searchPath: "/nowhere" }, folder)), /no Python on the search path/);
});

test("steps run in turn until one fails, whose reason is the last line that tells of an error", async () => {
  const lines: string[] = [];
  const listener = { line: (line: string) => lines.push(line), signal: new AbortController().signal };
  const ok = { program: program("ok", "done"), args: [] };
  const bad = { program: process.execPath, args: ["-e", "console.log('ERROR: no room\\nsee the manual'); process.exit(2)"] };
  assert.equal(await runSteps([ok, ok], folder, listener), undefined);
  assert.equal(await runSteps([ok, bad, ok], folder, listener), "no room");
  assert.deepEqual(lines.filter((line) => !line.startsWith(">")), ["done", "done", "done", "ERROR: no room", "see the manual"]);
  assert.match((await runSteps([{ program: "/nowhere/uv", args: [] }], folder, listener)) ?? "", /ENOENT/);
  assert.match((await runSteps([{ program: process.execPath, args: ["-e", "process.exit(3)"] }], folder, listener)) ?? "", /ended with 3/);
});

test("a step finds in its environment what it is given, and the log says so", async () => {
  const lines: string[] = [];
  const listener = { line: (line: string) => lines.push(line), signal: new AbortController().signal };
  const args = ["-e", "console.log(process.env.UV_TORCH_BACKEND, process.env.PATH)"];
  await runSteps([{ program: process.execPath, args, environment: { UV_TORCH_BACKEND: "auto" } }], folder, listener);
  assert.deepEqual(lines, [`> UV_TORCH_BACKEND=auto ${process.execPath} ${args.join(" ")}`, `auto ${process.env["PATH"]}`]);
});

test("uv is asked for the PyTorch that the machine needs, and else for the package index's", () => {
  const [fitting, plain, ...others] = waysOf("uv", "/bin/uv", "qcn-lsp[engine]", "linux");
  assert.deepEqual(others, []);
  assert.deepEqual(fitting?.step, { program: "/bin/uv", args: ["tool", "install", "--force", "qcn-lsp[engine]"], environment: { UV_TORCH_BACKEND: "auto" } });
  assert.deepEqual(plain?.step, { program: "/bin/uv", args: ["tool", "install", "--force", "qcn-lsp[engine]"] });
  assert.match(plain?.detail ?? "", /5 GB on disk/);
});

test("where it makes no difference, and by pipx, there is one way", () => {
  const [onMac, ...others] = waysOf("uv", "/bin/uv", "what", "darwin");
  assert.deepEqual([onMac?.step.environment, others], [undefined, []]);
  const [pipx, ...more] = waysOf("pipx", "/bin/pipx", "what", "linux");
  assert.deepEqual([pipx?.step, more], [{ program: "/bin/pipx", args: ["install", "--force", "what"] }, []]);
  assert.match(pipx?.detail ?? "", /5 GB on disk/);
});

test("cancelled, what runs is ended", async () => {
  const stop = new AbortController();
  const listener = { line: (line: string) => line === "up" && stop.abort(), signal: stop.signal };
  const endless = { program: process.execPath, args: ["-e", "console.log('up'); setInterval(() => undefined, 1000)"] };
  assert.equal(await runSteps([endless], folder, listener), "It was cancelled.");
});

test("of pip's and uv's complaints the telling line is taken", () => {
  assert.equal(reasonIn(["Collecting torch", "ERROR: [Errno 28] No space left on device", "", "[notice] a new pip"].filter(Boolean)), "[Errno 28] No space left on device");
  const nested = ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "Traceback (most recent call last):", "subprocess.CalledProcessError: Command '[…]' returned non-zero exit status 1."];
  assert.equal(reasonIn(nested), "Could not install packages due to an OSError: [Errno 28] No space left on device");
  assert.equal(reasonIn(["only this"]), "only this");
  assert.equal(reasonIn([]), undefined);
});
