/** What the server says of itself (`didChangeStatus`), in the shape of Copilot's language server. */
export interface Status {
  readonly busy: boolean;
  readonly kind: "Normal" | "Warning" | "Error" | "Inactive";
  readonly message: string;
}

export const IDLE: Status = { busy: false, kind: "Normal", message: "" };

/** Whether the engine is there: while it starts or loads, the server says so. */
export function isReady(status: Status): boolean {
  return status.kind === "Normal" && status.message === "";
}
