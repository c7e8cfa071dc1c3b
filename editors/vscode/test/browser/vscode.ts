/** A real VS Code: the server out of code-server's package, a headless Chromium, folders of its own. */

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { chromium, type Browser, type Locator, type Page } from "playwright-core";

/** The clone that is tested; the bundled tests lie in editors/vscode/build/browser. */
export const CLONE = resolve(__dirname, "..", "..", "..", "..");
export const SCREENSHOTS = join(CLONE, "build", "editors");
const EDITORS = process.env["QCN_EDITORS"] ?? join(CLONE, ".cache", "editors");
const VSCODE = join(EDITORS, "code-server", "node_modules", "code-server", "lib", "vscode");
export const VSIX = join(CLONE, "dist", "qcn.vsix");
export const PYTHON = process.env["QCN_PYTHON"] ?? join(CLONE, ".venv", "bin", "python");

/** Ends a wait that would never end; nothing is judged by it. */
export const PATIENCE_MS = 300_000;

export interface Options {
  /** The user's settings, beside those that keep a test quiet. */
  readonly settings?: Record<string, unknown>;
  /** Ask for trust in the folder, as a desktop does; a test's folder is trusted otherwise. */
  readonly untrusted?: boolean;
  readonly environment?: Record<string, string>;
  /** Folders as VS Code and all that it starts shall see them: bubblewrap's options, by those of the user's data. */
  readonly mounts?: (data: string) => string[];
  readonly smokeTest?: boolean;
}

/** Where the small model has something to say, if not at the first of these places then at another. */
const PLACES = [
  "def parent(path: Path) -> Path:\n    return",
  "class Address:\n    def __init__(self, host: str, port: int) -> None:\n        self.",
  "def is_local(uri: str) -> bool:\n    if",
  "for part in parts:\n    if part",
  "try:\n    parts = urlsplit(uri)\nexcept",
];

const QUIET = {
  "workbench.startupEditor": "none",
  "workbench.tips.enabled": false,
  "workbench.enableExperiments": false,
  "extensions.autoCheckUpdates": false,
  "extensions.autoUpdate": false,
  "extensions.ignoreRecommendations": true,
  "telemetry.telemetryLevel": "off",
  "git.openRepositoryInParentFolders": "never",
  "git.autofetch": false,
  "editor.minimap.enabled": false,
  "editor.stickyScroll.enabled": false,
  "files.autoSave": "off",
  // What is typed is what stands there, and the list of completions hides no ghost text.
  "editor.autoIndent": "none",
  "editor.autoClosingBrackets": "never",
  "editor.autoClosingQuotes": "never",
  "editor.quickSuggestions": { other: "off", comments: "off", strings: "off" },
  "editor.suggestOnTriggerCharacters": false,
};

export class VSCode {
  private constructor(
    readonly folder: string,
    readonly page: Page,
    private readonly server: ChildProcess,
    private readonly browser: Browser,
    private readonly port: number,
  ) {}

  /** Start it with our VSIX installed, as a user does, showing nothing yet. */
  static async start(vsix: string, options: Options = {}): Promise<VSCode> {
    // A short path: Unix sockets lie below it.
    const folder = mkdtempSync(join(tmpdir(), "qcn-vscode-"));
    const data = join(folder, "data");
    mkdirSync(join(data, "data", "User"), { recursive: true });
    mkdirSync(join(data, "data", "Machine"), { recursive: true });
    const settings = JSON.stringify({ ...QUIET, ...options.settings });
    writeFileSync(join(data, "data", "Machine", "settings.json"), settings);
    const common = ["--accept-server-license-terms", "--server-data-dir", data];
    const main = join(VSCODE, "out", "server-main.js");
    const installed = spawnSync(process.execPath, [main, ...common, "--install-extension", vsix, "--force"], {
      encoding: "utf8",
    });
    if (installed.status !== 0) {
      throw new Error(`the extension was not installed: ${installed.stdout}${installed.stderr}`);
    }
    const port = await freePort();
    const arguments_ = [
      ...common,
      ...["--host", "127.0.0.1", "--port", String(port), "--without-connection-token"],
      ...["--telemetry-level", "off"],
      // The environment is the test's, and not what the user's shell makes of it.
      "--force-disable-user-env",
      ...(options.untrusted ? [] : ["--disable-workspace-trust"]),
      ...(options.smokeTest ? ["--enable-smoke-test-driver"] : []),
    ];
    const [program = "", ...before] = [...(options.mounts ? mounting(options.mounts(join(data, "data"))) : []), process.execPath];
    const server = spawn(program, [...before, main, ...arguments_], {
      env: { ...process.env, ...privateFolders(folder), ...options.environment },
      stdio: ["ignore", "pipe", "pipe"],
    });
    await said(server, "Extension host agent listening");
    const browser = await aBrowser();
    const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
    page.setDefaultTimeout(PATIENCE_MS);
    return new VSCode(folder, page, server, browser, port);
  }

  /** Open a workspace folder, and files in it. */
  async open(workspace: string, ...files: string[]): Promise<void> {
    const payload = files.map((file): string[] => ["openFile", this.remote(join(workspace, file))]);
    await this.goto({ folder: workspace }, payload);
    if (files.length) {
      await this.page.locator(".monaco-editor .view-lines").first().waitFor();
    }
  }

  /** Open a folder, or a workspace of several, with what VS Code calls a payload. */
  async goto(what: Record<string, string>, payload: string[][]): Promise<void> {
    const query = new URLSearchParams({ ...what, payload: JSON.stringify(payload) });
    await this.page.goto(`http://127.0.0.1:${this.port}/?${query.toString()}`);
    await this.page.locator(".monaco-workbench").waitFor();
  }

  remote(file: string): string {
    return `vscode-remote://127.0.0.1:${this.port}${file}`;
  }

  /** Run a command by its title, through the palette, as a user does. */
  async run(title: string): Promise<void> {
    await this.page.keyboard.press("F1");
    const input = this.page.locator(".quick-input-widget input").first();
    await input.waitFor();
    await input.fill(`>${title}`);
    const row = this.page.locator(".quick-input-list .monaco-list-row").first();
    await row.filter({ hasText: title }).waitFor();
    await this.page.keyboard.press("Enter");
  }

  async goTo(line: number, column: number): Promise<void> {
    await this.page.keyboard.press("Control+g");
    const input = this.page.locator(".quick-input-widget input").first();
    await input.waitFor();
    await input.fill(`:${line}:${column}`);
    await this.page.keyboard.press("Enter");
    await this.page.locator(".quick-input-widget").waitFor({ state: "hidden" });
  }

  /**
   * Open the menu of code actions, once the light bulb is there. VS Code asks by itself a quarter of a
   * second after the cursor has moved, and drops the question of a menu that is not there by then.
   */
  async openCodeActions(): Promise<void> {
    await this.page.locator(".lightBulbWidget[class*='codicon-']").waitFor();
    await this.page.keyboard.press("Control+.");
  }

  /** The pieces of the ghost text: behind the cursor, and the lines below it. */
  get ghost(): Locator {
    return this.page.locator(".ghost-text-decoration, .suggest-preview-text .view-line");
  }

  /** Type into the editor: the last character as a key, so that VS Code asks for a suggestion. */
  async type(text: string): Promise<void> {
    await this.page.keyboard.insertText(text.slice(0, -1));
    await this.page.keyboard.type(text.slice(-1));
  }

  /** Whether ghost text comes; to hear nothing from the model is the one thing that must be waited out. */
  async suggests(milliseconds = 20_000): Promise<boolean> {
    return this.ghost.first().waitFor({ timeout: milliseconds }).then(
      () => true,
      () => false,
    );
  }

  /** Have ghost text shown, on lines of its own at the end of the file; returns it without white space. */
  async suggestion(wanted = (_shown: string): boolean => true): Promise<string> {
    for (const place of PLACES) {
      await this.page.keyboard.press("Escape");
      await this.page.keyboard.press("Control+End");
      await this.type(`\n\n${place} `);
      const shown = (await this.suggests()) ? await this.shownGhost() : "";
      if (shown !== "" && wanted(shown)) {
        return shown;
      }
    }
    throw new Error(`the model has nothing to say anywhere; the log:\n${this.log()}`);
  }

  /** The ghost text without its white space, which VS Code draws in ways of its own. */
  async shownGhost(): Promise<string> {
    return withoutSpace((await this.ghost.allTextContents()).join(""));
  }

  /** Save the file in front and return what is on disk. */
  async saved(file: string): Promise<string> {
    await this.page.keyboard.press("Control+s");
    await this.page.locator(".tab.active.dirty").waitFor({ state: "detached" });
    return readFileSync(file, "utf8");
  }

  get statusBarItem(): Locator {
    return this.page.locator("[id='qcn-lsp.qcn.status']");
  }

  /** Return when the server runs and its model is known. */
  async ready(model = "qcn-nano"): Promise<void> {
    await this.statusBarItem.filter({ hasText: model }).waitFor();
  }

  notification(text: string | RegExp): Locator {
    return this.page.locator(".notification-toast").filter({ hasText: text });
  }

  /** From the next `open` on, note every text that the status bar ever shows. */
  async noteStatusBar(): Promise<void> {
    await this.page.addInitScript(() => {
      const seen = new Set<string>();
      Object.assign(globalThis, { seenInStatusBar: seen });
      const look = (): void => {
        for (const item of document.querySelectorAll(".statusbar-item")) {
          seen.add(item.textContent ?? "");
        }
      };
      new MutationObserver(look).observe(document, { subtree: true, childList: true, characterData: true });
    });
  }

  async seenInStatusBar(): Promise<string[]> {
    return this.page.evaluate(() => [...(globalThis as unknown as { seenInStatusBar: Set<string> }).seenInStatusBar]);
  }

  /** The engines that were started from this VS Code. */
  engines(): number[] {
    return enginesOf(this.folder);
  }

  /** What the extension and the server have logged. */
  log(): string {
    const logs = join(this.folder, "data", "data", "logs");
    const files = readdirSync(logs, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith("qcn.log"));
    return files.map((name) => readFileSync(join(logs, name), "utf8")).join("\n");
  }

  async screenshot(name: string): Promise<void> {
    mkdirSync(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), animations: "disabled" });
  }

  async stop(): Promise<void> {
    await this.browser.close();
    this.server.kill();
    if (this.server.exitCode === null && this.server.signalCode === null) {
      await once(this.server, "exit");
    }
    await endProcesses(this.folder);
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** A copy of this repository as it is committed, for a test to change. */
export function aRepository(parent: string): string {
  const folder = join(parent, "qcn-lsp");
  const done = spawnSync("git", ["clone", "-q", "--no-hardlinks", CLONE, folder], { encoding: "utf8" });
  if (done.status !== 0) {
    throw new Error(done.stderr);
  }
  return folder;
}

/** Debian's Chromium, without a screen. */
export async function aBrowser(): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env["QCN_CHROMIUM"] ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
  });
}

/** The environment variable that says which folder's processes they are. */
const OWNER = "QCN_TEST_FOLDER";

/** The beginning of a command line whose rest sees other folders, also where root runs it. */
function mounting(mounts: string[]): string[] {
  return ["/usr/bin/bwrap", "--die-with-parent", "--dev-bind", "/", "/", ...mounts];
}

/** Why tests that mount cannot run here; false where they can. */
export const CANNOT_MOUNT =
  spawnSync("/usr/bin/bwrap", [...mounting(readOnly("/usr")).slice(1), "true"]).status !== 0 && "bubblewrap mounts nothing here";

export function readOnly(folder: string): string[] {
  return ["--ro-bind", folder, folder];
}

/** The processes that were started with the private folders below `folder`. */
function processesOf(folder: string): number[] {
  const variable = `${OWNER}=${folder}`;
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(variable);
      } catch {
        return false; // gone meanwhile, or another user's
      }
    })
    .map(Number);
}

/** The engines among them. */
function enginesOf(folder: string): number[] {
  return processesOf(folder).filter((pid) => commandLine(pid).includes("qcn_inference"));
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

/** End them all, engines too, which would stay for other windows; nothing is written there any more then. */
export async function endProcesses(folder: string): Promise<void> {
  for (let left = processesOf(folder); left.length; left = processesOf(folder)) {
    left.forEach(kill);
    await new Promise((resolve_) => setTimeout(resolve_, 20)); // the system tells nobody but their parents
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // gone meanwhile
  }
}

export function withoutSpace(text: string): string {
  return text.replace(/[\s\u00a0]/g, "");
}

export function privateFolders(folder: string): Record<string, string> {
  const of = (name: string): string => {
    const path = join(folder, name);
    mkdirSync(path, { mode: 0o700 });
    return path;
  };
  return { XDG_RUNTIME_DIR: of("run"), XDG_STATE_HOME: of("state"), XDG_CACHE_HOME: of("cache"), [OWNER]: folder };
}

async function freePort(): Promise<number> {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address() as net.AddressInfo;
  probe.close();
  await once(probe, "close");
  return port;
}

/** Return when a process has written a text. */
async function said(process_: ChildProcess, text: string): Promise<void> {
  let output = "";
  await new Promise<void>((resolve_, reject) => {
    const hear = (chunk: Buffer): void => {
      output += chunk.toString();
      if (output.includes(text)) {
        resolve_();
      }
    };
    process_.stdout?.on("data", hear);
    process_.stderr?.on("data", hear);
    process_.once("exit", (code) => reject(new Error(`ended with ${code}: ${output}`)));
  });
}
