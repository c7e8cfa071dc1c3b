/** The item in the status bar: state, model, how full the context is; a click opens the menu. */

import * as vscode from "vscode";

import { Asking } from "./asking";
import type { Server, Standing } from "./server";
import { fullest, type State } from "./state";

export class StatusBar implements vscode.Disposable {
  private readonly item = vscode.window.createStatusBarItem("status", vscode.StatusBarAlignment.Right, 100);
  private readonly listening: vscode.Disposable;
  private readonly asking = new Asking(() => this.ask());
  private state: State | undefined;

  constructor(private readonly server: Server) {
    this.item.name = "qcn";
    this.item.command = "qcn.menu";
    this.listening = server.onDidChange((standing) => {
      this.draw(standing);
      void this.asking.wanted();
    });
    this.draw(server.standing);
    this.item.show();
  }

  dispose(): void {
    this.listening.dispose();
    this.item.dispose();
  }

  /** Ask for what the status does not tell, when work is over. */
  private async ask(): Promise<void> {
    const { standing } = this.server;
    if (standing.kind !== "running" || standing.status.busy) {
      return;
    }
    try {
      this.state = await this.server.ask<State>("qcn/state");
      this.draw(this.server.standing);
    } catch (error) {
      this.server.log.debug(`qcn/state: ${String(error)}`);
    }
  }

  private draw(standing: Standing): void {
    const { icon, text, level } = appearance(standing, this.state);
    this.item.text = `$(${icon}) ${text}`;
    this.item.tooltip = `qcn: ${describe(standing, this.state)}`;
    this.item.accessibilityInformation = { label: this.item.tooltip, role: "button" };
    const background = level && `statusBarItem.${level}Background`;
    this.item.backgroundColor = background ? new vscode.ThemeColor(background) : undefined;
  }
}

interface Appearance {
  readonly icon: string;
  readonly text: string;
  readonly level?: "warning" | "error";
}

function appearance(standing: Standing, state: State | undefined): Appearance {
  switch (standing.kind) {
    case "restricted":
      return { icon: "shield", text: "qcn" };
    case "missing":
      return { icon: "cloud-download", text: "qcn: not installed", level: "warning" };
    case "unfit":
      return { icon: "warning", text: "qcn: wrong version", level: "warning" };
    case "failed":
      return { icon: "error", text: "qcn: stopped", level: "error" };
    case "starting":
      return { icon: "loading~spin", text: "qcn" };
    case "paused":
      return { icon: "debug-pause", text: "qcn" };
    case "running":
      return running(standing, state);
  }
}

function running({ status }: Extract<Standing, { kind: "running" }>, state: State | undefined): Appearance {
  const fill = fullest(state);
  const text = state === undefined ? "qcn" : shortName(state.model) + (fill ? ` ${fill.percent}%` : "");
  if (status.kind === "Error" || status.kind === "Warning") {
    return { icon: "warning", text, level: status.kind === "Error" ? "error" : "warning" };
  }
  const off = status.kind === "Inactive";
  return { icon: off ? "circle-slash" : status.busy ? "loading~spin" : "sparkle", text };
}

/** One sentence or more on how things stand. */
export function describe(standing: Standing, state: State | undefined): string {
  if ("problem" in standing) {
    return standing.problem;
  }
  switch (standing.kind) {
    case "restricted":
      return "Nothing is started in a folder that is not trusted.";
    case "starting":
      return "The language server is starting.";
    case "paused":
      return "Paused.";
    case "running": {
      const fill = fullest(state);
      const context = fill ? ` It reads ${fill.tokens} tokens of ${fill.name}, ${fill.percent} % of what fits.` : "";
      const message = standing.status.message || (standing.status.busy ? "Completing." : "Ready.");
      return `${message}${state ? ` Model: ${state.model}.` : ""}${context}`;
    }
  }
}

/** A model's name, or the last part of its folder's. */
function shortName(model: string): string {
  return model.split(/[\\/]/).filter(Boolean).at(-1) ?? model;
}
