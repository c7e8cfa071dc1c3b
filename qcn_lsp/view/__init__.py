"""The page that draws what the model sees: `context.html`, its style and its script.

VS Code's extension shows the same files in a webview.
"""
