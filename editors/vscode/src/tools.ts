/**
 * How uv and pipx install the language server, and which build of PyTorch comes with it.
 *
 * PyPI's build for Linux is CUDA's, 5 GB on disk, which is of no use without an NVIDIA GPU. uv can
 * look for one and fetch what fits, from PyTorch's own index; where that is not reached, the index
 * that the user has is another choice. By the environment, not by an option: an older uv, which
 * knows neither, goes on with the index.
 */

import type { Step } from "./running";

/** A step that installs it, and what is said of it. */
export interface Way {
  readonly tool: string;
  readonly label: string;
  readonly detail: string;
  readonly step: Step;
}

export function waysOf(tool: string, program: string, what: string, platform: NodeJS.Platform): Way[] {
  const args = [...(tool === "uv" ? ["tool"] : []), "install", "--force", what];
  const byIndex = { tool, label: `Install with ${tool}`, detail: `${program}; ${ofTheIndex(platform)}`, step: { program, args } };
  if (tool !== "uv" || platform === "darwin") {
    return [byIndex];
  }
  const detail = `${program}; PyTorch as this machine needs it: below 1 GB on disk without an NVIDIA GPU`;
  return [
    { ...byIndex, detail, step: { program, args, environment: { UV_TORCH_BACKEND: "auto" } } },
    { ...byIndex, label: `${byIndex.label}, PyTorch from your package index` },
  ];
}

/** Which PyTorch a package index gives. */
export function ofTheIndex(platform: NodeJS.Platform): string {
  return `PyTorch as your package index has it${platform === "linux" ? ": PyPI's is CUDA's, 5 GB on disk" : ""}`;
}
