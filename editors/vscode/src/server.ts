/**
 * The language server's life as the editor sees it: found, started, restarted after a crash, given
 * up after five, stopped.
 */

import { constants, accessSync, statSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";

import * as vscode from "vscode";
import {
  CloseAction,
  ErrorAction,
  LanguageClient,
  ShowMessageNotification,
  State,
  type LanguageClientOptions,
} from "vscode-languageclient/node";

import { forServer } from "./configuration";
import { Crashes, MOST_CRASHES } from "./crashes";
import { locate, type Launch, type Machine } from "./locate";
import { keepLog } from "./logLines";
import { tellMessage } from "./messages";
import { Outcomes } from "./outcomes";
import { Unanswered } from "./unanswered";
import { IDLE, type Status } from "./status";
import { unfit } from "./versions";

/** How things stand; `problem` is a sentence for the user. */
export type Standing =
  | { readonly kind: "restricted" }
  | { readonly kind: "missing"; readonly problem: string; readonly chosen: boolean }
  | { readonly kind: "starting" }
  | { readonly kind: "running"; readonly status: Status }
  | { readonly kind: "paused" }
  | { readonly kind: "unfit"; readonly problem: string }
  | { readonly kind: "failed"; readonly problem: string };

/** What is completed: files, new files, and the cells of notebooks, each cell by itself. */
const DOCUMENTS = [{ scheme: "file" }, { scheme: "untitled" }, { scheme: "vscode-notebook-cell" }];

/** For a client that is ended while it starts. */
const PATIENCE_MS = 5_000;

export class Server implements vscode.Disposable {
  readonly log = vscode.window.createOutputChannel("qcn", { log: true });
  readonly trace = vscode.window.createOutputChannel("qcn trace", { log: true });
  private readonly changed = new vscode.EventEmitter<Standing>();
  /** Fires whenever `standing` may have changed. */
  readonly onDidChange = this.changed.event;
  private current: Standing = { kind: "restricted" };
  private client: LanguageClient | undefined;
  /** Until the client is up, or has failed. */
  private started = Promise.resolve();
  /** Until the client before is gone. */
  private ending = Promise.resolve();
  private asked = 0;
  private crashes = new Crashes();
  private isPaused = false;
  private launched: Launch | undefined;
  private readonly unanswered = new Unanswered();

  /** The environment that the extension installs a server into; it may not be there. */
  readonly environment: string;

  /** `storage` is the folder that the editor lends the extension. */
  constructor(
    private readonly version: string,
    storage: string,
  ) {
    this.environment = path.join(storage, "server");
  }

  get standing(): Standing {
    return this.isPaused && this.current.kind === "running" ? { kind: "paused" } : this.current;
  }

  get paused(): boolean {
    return this.isPaused;
  }

  /** The command line of the server that was started last. */
  get launch(): Launch | undefined {
    return this.launched;
  }

  get serverVersion(): string | undefined {
    return this.client?.initializeResult?.serverInfo?.version;
  }

  /** Ask the server; undefined while none runs. */
  async ask<T>(method: string, params?: object): Promise<T | undefined> {
    if (this.current.kind !== "running" || this.client?.state !== State.Running) {
      return undefined;
    }
    return this.client.sendRequest<T>(method, params);
  }

  /** Start, or start anew, with crashes forgotten; nothing is started in a folder without trust. */
  async start(): Promise<void> {
    const asked = ++this.asked;
    await this.stop();
    if (asked !== this.asked) {
      return; // it is asked for once more, and then started
    }
    this.crashes.forget();
    if (!vscode.workspace.isTrusted) {
      this.become({ kind: "restricted" });
      return;
    }
    const found = locate(chosen(), this.machine());
    if ("problem" in found) {
      this.log.warn(found.problem);
      this.become({ kind: "missing", ...found });
      return;
    }
    this.launched = found;
    this.log.info(`starting ${[found.command, ...found.args].join(" ")} (${found.found})`);
    await this.run(found);
  }

  /** This machine, as the search for programs sees it. */
  machine(): Machine {
    return {
      platform: process.platform,
      home: os.homedir(),
      searchPath: process.env["PATH"] ?? "",
      workspaceFolders: (vscode.workspace.workspaceFolders ?? []).map((folder) => folder.uri.fsPath),
      environment: this.environment,
      isExecutable,
    };
  }

  async stop(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    if (client !== undefined) {
      this.ending = this.end(client, this.started);
    }
    await this.ending; // also what another call has begun: two at once would be in each other's way
  }

  /** Pause, or go on: a paused server offers nothing and asks its engine for nothing. */
  async pause(paused: boolean): Promise<void> {
    this.isPaused = paused;
    // The server asks for its settings again, and hears that it is turned off.
    await this.client?.sendNotification("workspace/didChangeConfiguration", { settings: null });
    this.changed.fire(this.standing);
  }

  dispose(): void {
    void this.stop();
    this.changed.dispose();
    this.log.dispose();
    this.trace.dispose();
  }

  private async run(launch: Launch): Promise<void> {
    const executable = {
      command: launch.command,
      args: [...launch.args],
      // Not the workspace: no file there may be taken for a part of the server.
      options: { cwd: os.homedir() },
    };
    const closed = (): void => this.onEnd(client, launch);
    const client: LanguageClient = new QuietClient("qcn", "qcn", executable, this.options(closed));
    this.client = client;
    this.become({ kind: "starting" });
    client.onDidChangeState((change) => this.onState(client, change.newState));
    // In the place of the client's own, which says neither who speaks nor where to read more.
    client.onNotification(ShowMessageNotification.type, ({ type, message }) => void tellMessage(message, type));
    client.onNotification("didChangeStatus", (status: Status) => this.onStatus(client, status));
    this.started = client.start().catch((error: unknown) => this.onFailedStart(client, error));
    await this.started;
  }

  private async end(client: LanguageClient, started: Promise<void>): Promise<void> {
    if (client.state === State.Starting) {
      await client.dispose().catch(() => undefined); // ends its process in two seconds
      await Promise.race([started, new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))]);
    }
    // One that never came up, or is gone, has nothing to be told.
    if (client.state === State.Running) {
      await client.stop().catch((error: unknown) => this.log.warn(`not stopped in order: ${String(error)}`));
    }
    await client.dispose().catch(() => undefined);
  }

  private options(closed: () => void): LanguageClientOptions {
    const outcomes = new Outcomes((outcome) => {
      void this.client?.sendNotification("qcn/completionOutcome", { outcome });
    });
    return {
      documentSelector: DOCUMENTS,
      outputChannel: this.log,
      traceOutputChannel: this.trace,
      // Standard output is the protocol's.
      stdioOptions: { stdout: () => undefined, stderr: (stream) => keepLog(stream, this.log) },
      // Restarting is our affair: the client's own would not count a server that ends while starting.
      errorHandler: {
        error: () => ({ action: ErrorAction.Continue, handled: true }),
        closed: () => {
          closed();
          return { action: CloseAction.DoNotRestart, handled: true };
        },
      },
      initializationFailedHandler: () => false,
      middleware: {
        workspace: {
          configuration: async (params, token, next) => {
            const answer = await next(params, token);
            return Array.isArray(answer) ? answer.map((section) => forServer(section, this.isPaused)) : answer;
          },
        },
        handleWorkDoneProgress: (token, params, next) => {
          next(token, params);
          if (params.kind === "end") {
            this.changed.fire(this.standing); // a model was loaded, or a folder read
          }
        },
        provideInlineCompletionItems: async (document, position, context, token, next) => {
          const answer = await next(document, position, context, token);
          const items = Array.isArray(answer) ? answer : (answer?.items ?? []);
          if (token.isCancellationRequested) {
            return answer;
          }
          this.unanswered.answered(document, position, items.length);
          return outcomes.offered(document, items);
        },
      },
    };
  }

  /** Start a server anew that has ended without being told to, until that happens too often. */
  private onEnd(client: LanguageClient, launch: Launch): void {
    if (this.client !== client) {
      return;
    }
    this.client = undefined;
    if (this.crashes.happened(Date.now())) {
      const problem = `The language server ended ${MOST_CRASHES} times within three minutes and is not started again.`;
      this.become({ kind: "failed", problem });
    } else {
      this.log.warn("the language server ended unexpectedly and is started anew");
      void this.run(launch);
    }
  }

  private onState(client: LanguageClient, state: State): void {
    if (this.client !== client || state !== State.Running) {
      return;
    }
    const problem = unfit(client.initializeResult?.serverInfo, this.version);
    if (problem === undefined) {
      this.become({ kind: "running", status: IDLE });
    } else {
      this.become({ kind: "unfit", problem });
      void this.stop();
    }
  }

  private onStatus(client: LanguageClient, status: Status): void {
    if (this.client === client && this.current.kind === "running") {
      const before = this.current.status;
      this.become({ kind: "running", status });
      this.unanswered.onStatus(before, status);
    }
  }

  private onFailedStart(client: LanguageClient, error: unknown): void {
    if (this.client === client) {
      this.client = undefined; // one that ended while starting is another's by now
      this.become({ kind: "failed", problem: `The language server could not be started: ${text(error)}` });
    }
  }

  private become(standing: Standing): void {
    this.current = standing;
    if ("problem" in standing) {
      this.log.error(standing.problem);
    }
    this.changed.fire(this.standing);
  }
}

/** A client whose own complaints go to the log: what the user hears is ours to say, once. */
class QuietClient extends LanguageClient {
  override error(message: string, data?: unknown): void {
    super.error(message, data, false);
  }
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}

function chosen(): { command: string | null; python: string | null } {
  const settings = vscode.workspace.getConfiguration("qcn.server");
  return { command: settings.get<string | null>("command", null), python: settings.get<string | null>("python", null) };
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
