/** Whether a server is one that this extension can work with. */

export interface ServerInfo {
  readonly name: string;
  readonly version?: string | undefined;
}

/**
 * Say what is wrong with a server; undefined where nothing is.
 *
 * Both are released together. Until 1.0 a minor version may change what they say to each other, a
 * patch may not.
 */
export function unfit(server: ServerInfo | undefined, extensionVersion: string): string | undefined {
  if (server?.name !== "qcn-lsp") {
    return `What was started is no qcn-lsp${server ? ` but "${server.name}"` : ""}.`;
  }
  const wanted = line(extensionVersion);
  if (line(server.version ?? "") !== wanted) {
    return `The language server is version ${server.version ?? "unknown"}; this extension works with ${wanted}.x.`;
  }
  return undefined;
}

function line(version: string): string {
  const [major = "", minor = ""] = version.split(".");
  return major === "0" ? `0.${minor}` : major;
}
