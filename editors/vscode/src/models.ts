/** Choosing the model that completes: the embedded one, or a checkpoint's folder. */

import * as vscode from "vscode";

export const EMBEDDED = "qcn-nano";

export async function chooseModel(): Promise<void> {
  const settings = vscode.workspace.getConfiguration("qcn.models");
  const current = settings.get("completion", EMBEDDED);
  const embedded = { label: EMBEDDED, description: "small, comes with the server, runs anywhere" };
  const folder = { label: "$(folder-opened) A checkpoint's folder…", description: "qwen3_next or qwen3_5, safetensors" };
  const kept = current === EMBEDDED ? [] : [{ label: current, description: "in use" }];
  const picked = await vscode.window.showQuickPick([embedded, ...kept, folder], { title: "qcn: the model that completes" });
  const model = picked === folder ? await aFolder() : picked?.label;
  if (model !== undefined && model !== current) {
    await settings.update("completion", model, vscode.ConfigurationTarget.Global);
  }
}

async function aFolder(): Promise<string | undefined> {
  const chosen = await vscode.window.showOpenDialog({ canSelectFolders: true, canSelectFiles: false, openLabel: "Use this model" });
  return chosen?.[0]?.fsPath;
}
