/** The menu behind the status bar item. */

import * as vscode from "vscode";

import type { Server, Standing } from "./server";
import type { State } from "./state";
import { describe } from "./statusBar";

interface Entry extends vscode.QuickPickItem {
  readonly command: string;
}

export async function showMenu(server: Server): Promise<void> {
  const standing = server.standing;
  const state = await server.ask<State>("qcn/state").catch(() => undefined);
  const picked = await vscode.window.showQuickPick(entries(standing), { title: "qcn", placeHolder: describe(standing, state) });
  if (picked !== undefined) {
    await vscode.commands.executeCommand(picked.command);
  }
}

function entries({ kind }: Standing): Entry[] {
  if (kind === "restricted") {
    return [entry("shield", "Manage Workspace Trust", "workbench.trust.manage")];
  }
  const install = entry("cloud-download", "Install the language server", "qcn.install");
  const restart = entry("debug-restart", "Restart the language server", "qcn.restart");
  const always = [
    entry("output", "Show the log", "qcn.showLog"),
    entry("settings-gear", "Open the settings", "qcn.openSettings"),
    entry("report", "Collect a report for an issue", "qcn.report"),
    entry("book", "First steps", "qcn.walkthrough"),
  ];
  if (kind === "running" || kind === "paused") {
    const paused = kind === "paused";
    return [
      paused ? entry("play", "Go on", "qcn.pause") : entry("debug-pause", "Pause", "qcn.pause"),
      entry("graph", "Show what the model sees", "qcn.showContext"),
      entry("chip", "Choose the model", "qcn.chooseModel"),
      restart,
      ...always,
    ];
  }
  return [...(kind === "missing" || kind === "unfit" ? [install] : []), restart, ...always];
}

function entry(icon: string, label: string, command: string): Entry {
  return { label: `$(${icon}) ${label}`, command };
}
