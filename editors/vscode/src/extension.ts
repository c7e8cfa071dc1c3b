/** The extension: a thin client. Everything that can live in the language server does. */

import * as vscode from "vscode";

import { ACCEPTED } from "./outcomes";
import { Server } from "./server";

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  const server = new Server(String(context.extension.packageJSON.version));
  const commands: Record<string, (...args: never[]) => unknown> = {
    [ACCEPTED]: (tell: () => void) => tell(),
    "qcn.restart": () => server.start(),
    "qcn.pause": () => server.pause(!server.paused),
    "qcn.showLog": () => server.log.show(),
  };
  context.subscriptions.push(
    server,
    ...Object.entries(commands).map(([name, run]) => vscode.commands.registerCommand(name, run)),
    vscode.workspace.onDidGrantWorkspaceTrust(() => server.start()),
    vscode.workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration("qcn.server")) {
        void server.start();
      }
    }),
  );
  await server.start();
}
