/** A report for an issue, shown to the user as a document to look through before it is sent. */

import { readFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

import * as vscode from "vscode";

import { redacted, redactedText } from "./redaction";
import type { Server } from "./server";
import type { State } from "./state";
import { describe } from "./statusBar";

const LOG_LINES = 60;

export async function collectReport(server: Server, context: vscode.ExtensionContext): Promise<void> {
  const home = os.homedir();
  const state = await server.ask<State>("qcn/state").catch(() => undefined);
  const launch = server.launch;
  const content = [
    "# Report for an issue of qcn",
    "Look through it before you send it. It holds no source text and no tokens; paths below your home folder begin with `~`.",
    "## What went wrong\n\n(Please tell it in your own words.)",
    `## Versions\n\n${versions(server, context)}`,
    `## State\n\n${redactedText(describe(server.standing, state), home)}`,
    launch ? `Started as \`${redactedText([launch.command, ...launch.args].join(" "), home)}\` (${redactedText(launch.found, home)})` : "Nothing was started.",
    `## Settings that are not the default\n\n\`\`\`json\n${JSON.stringify(redacted(changedSettings(context), home), null, 2)}\n\`\`\``,
    `## The end of the log\n\n\`\`\`\n${redactedText(lastLines(context), home)}\n\`\`\``,
  ].join("\n\n");
  const document = await vscode.workspace.openTextDocument({ language: "markdown", content });
  await vscode.window.showTextDocument(document);
}

function versions(server: Server, context: vscode.ExtensionContext): string {
  return [
    `- extension ${String(context.extension.packageJSON.version)}, language server ${server.serverVersion ?? "not running"}`,
    `- ${vscode.env.appName} ${vscode.version}, ${vscode.env.remoteName ? `remote (${vscode.env.remoteName})` : "local"}`,
    `- ${os.type()} ${os.release()}, ${os.arch()}, ${os.cpus().length} CPUs, ${Math.round(os.totalmem() / 2 ** 30)} GiB`,
  ].join("\n");
}

/** The settings whose value is not the manifest's default. */
function changedSettings(context: vscode.ExtensionContext): Record<string, unknown> {
  const parts = context.extension.packageJSON.contributes.configuration as { properties: Record<string, { default: unknown }> }[];
  const settings = vscode.workspace.getConfiguration();
  const changed = parts
    .flatMap((part) => Object.entries(part.properties))
    .map(([name, declared]) => [name, settings.get<unknown>(name), declared.default] as const)
    .filter(([, value, default_]) => JSON.stringify(value) !== JSON.stringify(default_));
  return Object.fromEntries(changed.map(([name, value]) => [name, value]));
}

function lastLines(context: vscode.ExtensionContext): string {
  try {
    const log = readFileSync(path.join(context.logUri.fsPath, "qcn.log"), "utf8");
    return log.trimEnd().split("\n").slice(-LOG_LINES).join("\n");
  } catch {
    return "(There is no log.)";
  }
}
