/** The section `qcn` as the server may see it. */

/** Sections that are the extension's own; the server would call them unknown. */
const OWN = new Set(["server", "trace"]);

export function forServer(section: unknown, paused: boolean): unknown {
  if (typeof section !== "object" || section === null || Array.isArray(section)) {
    return section;
  }
  const settings = Object.fromEntries(Object.entries(section).filter(([name]) => !OWN.has(name)));
  return paused ? { ...settings, enable: false } : settings;
}
