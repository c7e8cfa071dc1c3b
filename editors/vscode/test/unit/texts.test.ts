import assert from "node:assert/strict";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import { test } from "node:test";

import { forServer } from "../../src/configuration";
import { keepLog } from "../../src/logLines";
import { redacted, redactedText } from "../../src/redaction";
import { fullest } from "../../src/state";

test("the server is not told of settings that are the extension's, and is turned off by a pause", () => {
  const section = { enable: true, server: { python: "/x" }, trace: { server: "off" }, log: { level: "info" } };
  assert.deepEqual(forServer(section, false), { enable: true, log: { level: "info" } });
  assert.deepEqual(forServer(section, true), { enable: false, log: { level: "info" } });
  assert.equal(forServer(null, true), null);
});

test("a report holds no token, no credentials and no home folder", () => {
  const settings = {
    "qcn.engine.token": "t0p",
    "qcn.engine.url": "http://ada:pw@models.example/v1",
    "qcn.models.completion": "/home/ada/models/next",
    "qcn.completion.maxTokens": 7,
    nested: [{ token: { deep: "t0p" } }, "/home/ada"],
  };
  assert.deepEqual(redacted(settings, "/home/ada"), {
    "qcn.engine.token": "…",
    "qcn.engine.url": "http://…@models.example/v1",
    "qcn.models.completion": "~/models/next",
    "qcn.completion.maxTokens": 7,
    nested: [{ token: "…" }, "~"],
  });
  assert.equal(redactedText("Authorization: Bearer t0p-x", "/"), "Authorization: Bearer …");
});

test("each line of the server's log comes at its own level, without its time", async () => {
  const stream = new PassThrough();
  const seen: string[] = [];
  const note = (level: string) => (text: string) => seen.push(`${level}: ${text}`);
  keepLog(stream, { debug: note("debug"), info: note("info"), warn: note("warn"), error: note("error") });
  stream.end("2026-11-26 07:10:03,988 INFO qcn_lsp.server: initialized\n2026-11-26 07:10:04,001 ERROR a: b\nTraceback\n");
  await once(stream, "close");
  assert.deepEqual(seen, ["info: qcn_lsp.server: initialized", "error: a: b", "warn: Traceback"]);
});

test("of several folders the fullest is told, and none where none is read", () => {
  const root = (name: string, tokens?: number): object => ({ uri: `file:///${name}`, name, ...(tokens ? { tokens, limit: 1000 } : {}) });
  const state = { version: "", model: "", roots: [root("a", 120), root("b", 700), root("c")] } as never;
  assert.deepEqual(fullest(state), { name: "b", tokens: 700, percent: 70 });
  assert.equal(fullest({ version: "", model: "", roots: [] }), undefined);
});
