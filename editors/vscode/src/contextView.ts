/** What the model sees, drawn in a panel: the page that `qcn context --open` shows in a browser. */

import { readFileSync } from "node:fs";
import * as path from "node:path";

import * as vscode from "vscode";

import type { Server } from "./server";
import type { State } from "./state";

/** The page's question; see `context.js`. */
interface Question {
  readonly root: string | null;
  readonly skipped: boolean;
}

export class ContextView {
  private panel: vscode.WebviewPanel | undefined;

  constructor(
    private readonly server: Server,
    private readonly extension: vscode.Uri,
  ) {}

  show(): void {
    if (this.panel !== undefined) {
      this.panel.reveal();
      return;
    }
    const page = vscode.Uri.joinPath(this.extension, "dist", "view");
    const options = { enableScripts: true, localResourceRoots: [page] };
    const panel = vscode.window.createWebviewPanel("qcn.context", "What the Model Sees", vscode.ViewColumn.Active, options);
    this.panel = panel;
    panel.onDidDispose(() => (this.panel = undefined));
    // The page asks while it is looked at; it is not kept when hidden, and asks anew when it is back.
    panel.webview.onDidReceiveMessage(async (question: Question) => panel.webview.postMessage(await this.data(question)));
    panel.webview.html = html(panel.webview, page);
  }

  private async data({ root, skipped }: Question): Promise<object> {
    const state = await this.ask<State>("qcn/state", {});
    const uri = state?.roots.find((one) => one.uri === root)?.uri ?? state?.roots[0]?.uri ?? null;
    let context: object | null = null;
    let problem = state === null ? "The language server is not running." : "No folder is open.";
    if (uri !== null) {
      try {
        context = (await this.server.ask<object>("qcn/context", { uri, now: true })) ?? null;
        problem = "";
      } catch (reason) {
        problem = reason instanceof Error ? reason.message : String(reason);
      }
    }
    return { state, root: uri, context, problem, skipped: uri !== null && skipped ? await this.ask("qcn/skipped", { uri }) : null };
  }

  private async ask<T>(method: string, params: object): Promise<T | null> {
    return (await this.server.ask<T>(method, params).catch(() => undefined)) ?? null;
  }
}

/** The page as it is, with what a webview needs in its head: a policy, and where its files are. */
function html(webview: vscode.Webview, folder: vscode.Uri): string {
  const page = readFileSync(path.join(folder.fsPath, "context.html"), "utf8");
  const policy = `default-src 'none'; style-src ${webview.cspSource}; script-src ${webview.cspSource}; form-action 'none'`;
  const base = `${webview.asWebviewUri(folder).toString()}/`;
  return page.replace("<head>", `<head><meta http-equiv="Content-Security-Policy" content="${policy}"><base href="${base}">`);
}
