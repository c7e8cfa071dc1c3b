import assert from "node:assert/strict";
import { test } from "node:test";

import { find, locate, type Machine } from "../../src/locate";

const NOTHING = { command: null, python: null };

function machine(programs: string[], searchPath: string, workspaceFolders: string[] = []): Machine {
  return { platform: "linux", home: "/home/ada", environment: "/storage/server", searchPath, workspaceFolders, isExecutable: (file) => programs.includes(file) };
}

function command(found: ReturnType<typeof locate>): string {
  return "problem" in found ? found.problem : found.command;
}

test("what the user chose comes before what is found, the command before the Python", () => {
  const here = machine(["/opt/qcn-lsp", "/home/ada/venv/bin/python", "/usr/bin/qcn-lsp"], "/usr/bin");
  assert.equal(command(locate({ command: "/opt/qcn-lsp", python: "~/venv/bin/python" }, here)), "/opt/qcn-lsp");
  const python = locate({ command: null, python: "~/venv/bin/python" }, here);
  assert.deepEqual({ ...python, found: "" }, { command: "/home/ada/venv/bin/python", args: ["-P", "-m", "qcn_lsp"], found: "" });
  assert.equal(command(locate(NOTHING, here)), "/usr/bin/qcn-lsp");
});

test("a choice that cannot be started is told, and nothing is started in its place", () => {
  const here = machine(["/usr/bin/qcn-lsp"], "/usr/bin");
  assert.equal(command(locate({ command: "/opt/qcn-lsp", python: null }, here)), "qcn.server.command: there is no program at /opt/qcn-lsp.");
  assert.equal(command(locate({ command: null, python: "python3" }, here)), 'qcn.server.python must be an absolute path, not "python3".');
});

test("nothing inside the workspace is ever started", () => {
  const programs = ["/ws/bin/qcn-lsp", "/ws/..bin/qcn-lsp", "/ws/qcn-lsp", "bin/qcn-lsp", "/wsx/qcn-lsp"];
  const path = "/ws/bin:/ws/..bin:/ws:bin:.::/ws/../ws/bin:/wsx";
  assert.equal(command(locate(NOTHING, machine(programs, path, ["/other", "/ws"]))), "/wsx/qcn-lsp");
});

test("what the extension has installed itself comes before what is on the search path", () => {
  const here = machine(["/storage/server/bin/qcn-lsp", "/usr/bin/qcn-lsp"], "/usr/bin");
  assert.equal(command(locate(NOTHING, here)), "/storage/server/bin/qcn-lsp");
  assert.equal(command(locate({ command: "/usr/bin/qcn-lsp", python: null }, here)), "/usr/bin/qcn-lsp");
});

test("where uv and pipx put it is looked at last, for editors that do not have it in their search path", () => {
  const programs = ["/home/ada/.local/bin/qcn-lsp", "/home/ada/.local/bin/uv"];
  assert.equal(command(locate(NOTHING, machine(programs, "/usr/bin"))), "/home/ada/.local/bin/qcn-lsp");
  assert.equal(find("uv", machine(programs, "/usr/bin")), "/home/ada/.local/bin/uv");
  assert.match(command(locate(NOTHING, machine([], "/usr/bin"))), /not installed/);
});
