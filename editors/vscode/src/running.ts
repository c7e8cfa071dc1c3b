/** Runs the programs of an installation, one after the other, and says why one failed. */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

export interface Step {
  readonly program: string;
  readonly args: readonly string[];
  /** What it finds in its environment beside what we have. */
  readonly environment?: Readonly<Record<string, string>>;
}

export interface Listener {
  /** Hears each line that a program writes. */
  readonly line: (line: string) => void;
  /** Ends it all. */
  readonly signal: AbortSignal;
}

const REASON = /\berror\b|errno|fail|cannot|could not|denied/i;
/** A Python program that says that another has failed, which has said why itself. */
const CONSEQUENCE = /CalledProcessError/;
const KEPT_LINES = 50;

/** Run the steps in a folder; undefined when all went well, else the reason in a line. */
export async function runSteps(steps: readonly Step[], folder: string, listener: Listener): Promise<string | undefined> {
  for (const step of steps) {
    const reason = await runStep(step, folder, listener);
    if (reason !== undefined) {
      return reason;
    }
  }
  return undefined;
}

async function runStep({ program, args, environment = {} }: Step, folder: string, { line, signal }: Listener): Promise<string | undefined> {
  const written: string[] = [];
  const hear = (text: string): void => {
    if (text.trim()) {
      line(text);
      written.push(text.trim());
      written.splice(0, written.length - KEPT_LINES);
    }
  };
  const set = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  hear(`> ${[...set, program, ...args].join(" ")}`);
  return new Promise((resolve) => {
    const running = spawn(program, args, { cwd: folder, env: { ...process.env, ...environment }, signal, stdio: ["ignore", "pipe", "pipe"], windowsHide: true });
    createInterface({ input: running.stdout }).on("line", hear);
    createInterface({ input: running.stderr }).on("line", hear);
    running.once("error", (error) => resolve(signal.aborted ? "It was cancelled." : error.message));
    running.once("close", (code) => {
      resolve(code === 0 ? undefined : (reasonIn(written.slice(1)) ?? `${program} ended with ${code}.`));
    });
  });
}

/** The last line that tells of an error, or else the last one; without what marks it as one. */
export function reasonIn(lines: readonly string[]): string | undefined {
  const telling = lines.filter((one) => REASON.test(one) && !CONSEQUENCE.test(one));
  const line = telling.at(-1) ?? lines.at(-1);
  return line?.replace(/^error: */i, "");
}
