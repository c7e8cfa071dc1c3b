/**
 * The extension from inside VS Code's extension host, with the whole API at hand and an endpoint that
 * answers what the test wants. Run by `host.test.ts`.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import * as os from "node:os";
import * as path from "node:path";

import * as vscode from "vscode";

const PATIENCE_MS = 60_000;
const ANSWER = "answer_of_the_model";

let prompts: string[] = [];

const TESTS: Record<string, (folder: string) => Promise<void>> = {
  "what is shown is inserted": async (folder) => {
    const document = await shown(path.join(folder, "main.py"), "total = ");
    await committed(document);
    assert.equal(document.getText(), `total = ${ANSWER}`);
  },

  "paused it asks for nothing, and goes on": async (folder) => {
    const document = await shown(path.join(folder, "paused.py"), "count = ");
    await vscode.commands.executeCommand("qcn.pause");
    const asked = prompts.length;
    await triggered();
    await vscode.commands.executeCommand("editor.action.inlineSuggest.commit");
    assert.equal(document.getText(), "count = ");
    assert.equal(prompts.length, asked);
    await vscode.commands.executeCommand("qcn.pause");
    // VS Code asks no second time at a place where there was nothing.
    await vscode.commands.executeCommand("type", { text: "1 + " });
    await committed(document);
    assert.equal(document.getText(), `count = 1 + ${ANSWER}`);
  },

  "a new file that has no name yet is completed": async () => {
    const document = await vscode.workspace.openTextDocument({ language: "python", content: "untitled = " });
    await atItsEnd(document);
    await committed(document);
    assert.equal(document.getText(), `untitled = ${ANSWER}`);
  },

  "a file of 200,000 lines is completed": async (folder) => {
    const document = await shown(path.join(folder, "long.py"), `${"value = 1\n".repeat(200_000)}last = `);
    assert.equal(document.lineCount, 200_001);
    await committed(document);
    assert.equal(document.lineAt(200_000).text, `last = ${ANSWER}`);
    assert.ok((prompts.at(-1) ?? "").length < 200_000);
  },

  "the cell of a notebook is completed by itself": async () => {
    const cell = new vscode.NotebookCellData(vscode.NotebookCellKind.Code, "cell = ", "python");
    const notebook = await vscode.workspace.openNotebookDocument("jupyter-notebook", new vscode.NotebookData([cell]));
    await vscode.window.showNotebookDocument(notebook);
    await vscode.commands.executeCommand("notebook.cell.edit");
    const { document } = notebook.cellAt(0);
    await until(() => vscode.window.activeTextEditor?.document === document);
    await vscode.commands.executeCommand("cursorBottom");
    await committed(document);
    assert.equal(document.getText(), `cell = ${ANSWER}`);
  },

  "in a comparison the right side is completed": async (folder) => {
    const old = await vscode.workspace.openTextDocument(written(path.join(folder, "old.py"), "a = 1\n"));
    const document = await vscode.workspace.openTextDocument(written(path.join(folder, "new.py"), "b = "));
    await vscode.commands.executeCommand("vscode.diff", old.uri, document.uri, "old and new");
    await until(() => vscode.window.activeTextEditor?.document === document);
    await vscode.commands.executeCommand("cursorBottom");
    await committed(document);
    assert.equal(document.getText(), `b = ${ANSWER}`);
  },

  "a file that may not be written stays as it is": async (folder) => {
    await vscode.workspace
      .getConfiguration("files")
      .update("readonlyInclude", { "**/readonly.py": true }, vscode.ConfigurationTarget.Global);
    const document = await shown(path.join(folder, "readonly.py"), "fixed = ");
    await triggered();
    await vscode.commands.executeCommand("editor.action.inlineSuggest.commit");
    assert.equal(document.getText(), "fixed = ");
  },

  "each folder of a workspace is completed as itself": async (folder) => {
    const document = await shown(path.join(path.dirname(folder), "other", "main.py"), "second = ");
    await committed(document);
    assert.match(prompts.at(-1) ?? "", /<\|repo_name\|>other\n/);
  },

  "a folder's settings hold in it alone": async (folder) => {
    const weak = "import hashlib\n\ndigest = hashlib.md5(name)\n";
    const other = path.join(path.dirname(folder), "other");
    const [here, there] = [written(path.join(folder, "weak.py"), weak), written(path.join(other, "weak.py"), weak)];
    await vscode.window.showTextDocument(there, { preview: false });
    await vscode.window.showTextDocument(here, { preview: false });
    const found = (): number[] => [here, there].map((uri) => vscode.languages.getDiagnostics(uri).length);
    await until(() => found().join() === "1,1");
    const settings = vscode.workspace.getConfiguration("qcn.security", vscode.Uri.file(other));
    await settings.update("findings", false, vscode.ConfigurationTarget.WorkspaceFolder);
    await until(() => found()[1] === 0);
    await vscode.commands.executeCommand("type", { text: "\neval(x)\n" });
    await until(() => found()[0] === 2);
    assert.deepEqual(found(), [2, 0]);
    await vscode.commands.executeCommand("workbench.action.files.saveAll");
    await vscode.commands.executeCommand("workbench.action.closeAllEditors");
  },

  "restarted twice at once there is one server, which answers": async (folder) => {
    await Promise.all([vscode.commands.executeCommand("qcn.restart"), vscode.commands.executeCommand("qcn.restart")]);
    await until(() => servers() === 1);
    await committed(await shown(path.join(folder, "again.py"), "again = "));
  },

  "a report holds no token and no path of the home folder": async () => {
    const settings = vscode.workspace.getConfiguration("qcn");
    await settings.update("engine.token", "t0p-secret", vscode.ConfigurationTarget.Global);
    await settings.update("models.chat", path.join(os.homedir(), "models", "next"), vscode.ConfigurationTarget.Global);
    await vscode.commands.executeCommand("qcn.report");
    const report = vscode.window.activeTextEditor?.document.getText() ?? "";
    assert.match(report, /extension 0\.\d+\.\d+, language server 0\.\d+\.\d+/);
    assert.match(report, /"qcn.engine.token": "…"/);
    assert.match(report, /"qcn.models.chat": "~\/models\/next"/);
    assert.match(report, /starting .*qcn_lsp/);
    assert.ok(!report.includes("t0p-secret") && !report.includes(ANSWER) && !report.includes(`${os.homedir()}/`), report);
  },
};

export async function run(): Promise<void> {
  const model = await endpoint();
  const address = model.address() as AddressInfo;
  const settings = vscode.workspace.getConfiguration("qcn");
  await settings.update("engine.url", `http://127.0.0.1:${address.port}`, vscode.ConfigurationTarget.Global);
  await vscode.extensions.getExtension("qcn-lsp.qcn")?.activate();
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? "";
  const failed: string[] = [];
  for (const [name, body] of Object.entries(TESTS)) {
    try {
      await body(folder);
      console.log(`ok: ${name}`);
    } catch (error) {
      failed.push(`${name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    }
    await vscode.commands.executeCommand("workbench.action.revertAndCloseActiveEditor");
  }
  model.close();
  if (failed.length) {
    throw new Error(failed.join("\n"));
  }
}

/** A model that always answers the same. */
async function endpoint(): Promise<Server> {
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk: Buffer) => (body += chunk.toString()));
    request.on("end", () => {
      response.setHeader("Content-Type", "application/json");
      if (request.url === "/v1/completions") {
        prompts.push(String(JSON.parse(body).prompt));
        response.end(JSON.stringify({ choices: [{ index: 0, text: ANSWER, finish_reason: "stop" }], usage: {} }));
      } else if (request.url === "/v1/models") {
        response.end(JSON.stringify({ object: "list", data: [{ id: "qcn-nano" }] }));
      } else {
        response.statusCode = 404;
        response.end("{}");
      }
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

/** How many language servers this process has started that still run. */
function servers(): number {
  const children = readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, "utf8").split(" ").filter(Boolean);
  return children.filter((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("qcn_lsp")).length;
}

function written(file: string, text: string): vscode.Uri {
  writeFileSync(file, text);
  return vscode.Uri.file(file);
}

/** Open a file with this text, the cursor at its end. */
async function shown(file: string, text: string): Promise<vscode.TextDocument> {
  const document = await vscode.workspace.openTextDocument(written(file, text));
  await atItsEnd(document);
  return document;
}

async function atItsEnd(document: vscode.TextDocument): Promise<void> {
  await vscode.window.showTextDocument(document);
  await vscode.commands.executeCommand("cursorBottom");
}

async function triggered(): Promise<void> {
  await vscode.commands.executeCommand("editor.action.inlineSuggest.trigger");
}

/** Ask for a suggestion and accept it; asks again while the server is still coming up. */
async function committed(document: vscode.TextDocument): Promise<void> {
  const before = document.version;
  await until(async () => {
    await triggered();
    await vscode.commands.executeCommand("editor.action.inlineSuggest.commit");
    return document.version > before;
  });
}

/** VS Code tells of none of this by an event. */
async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + PATIENCE_MS;
  while (!(await condition())) {
    assert.ok(Date.now() < end, `not within ${PATIENCE_MS} ms: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
