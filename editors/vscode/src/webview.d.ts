/** What VS Code gives to a script in a webview; `undefined` in a browser. */
declare function acquireVsCodeApi(): { postMessage(message: unknown): void };
