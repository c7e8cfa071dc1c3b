/** What the server writes to standard error, line by line into the log, each at its own level. */

import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

import type { LogOutputChannel } from "vscode";

const RECORD = /^\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)$/;

export function keepLog(stream: Readable, log: Pick<LogOutputChannel, "info" | "warn" | "error">): void {
  createInterface({ input: stream }).on("line", (line) => {
    const [, level, text = line] = RECORD.exec(line) ?? [];
    // What is told at all is `qcn.log.level`'s affair: the channel's own level must not hide it again.
    const write = { DEBUG: log.info, INFO: log.info, WARNING: log.warn, ERROR: log.error, CRITICAL: log.error };
    // What is no record is part of one before it: a traceback, or a library's complaint.
    (write[(level ?? "WARNING") as keyof typeof write] ?? log.warn).call(log, text);
  });
}
