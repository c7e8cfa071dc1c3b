/** What a report must not hold: tokens, the user's name in paths, credentials in addresses. */

const HIDDEN = "…";
const SECRET = /token|password|secret|key$/i;

/** A copy of settings with every secret hidden, whatever it is. */
export function redacted(settings: unknown, home: string, name = ""): unknown {
  if (settings !== null && settings !== undefined && settings !== "" && SECRET.test(name) && typeof settings !== "number") {
    return HIDDEN;
  }
  if (typeof settings === "string") {
    return redactedText(settings, home);
  }
  if (Array.isArray(settings)) {
    return settings.map((item) => redacted(item, home));
  }
  if (typeof settings === "object" && settings !== null) {
    return Object.fromEntries(Object.entries(settings).map(([key, value]) => [key, redacted(value, home, key)]));
  }
  return settings;
}

/** Text with the home folder as `~` and without credentials in addresses. */
export function redactedText(text: string, home: string): string {
  const withoutHome = home.length > 1 ? text.replaceAll(home, "~") : text;
  return withoutHome
    .replace(/(\w+:\/\/)[^\s/@]+@/g, `$1${HIDDEN}@`)
    .replace(/\b(bearer|token)([\s:=]+)\S+/gi, `$1$2${HIDDEN}`);
}
