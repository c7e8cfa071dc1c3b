"""Emacs and eglot, set up by the snippet of the page, with text outside the BMP (utf-32)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import DEADLINE_SECONDS
from neovim_support import answers
from setup_pages import snippet
from standin_endpoint import endpoint
from unpacked_editors import unpacked

pytestmark = pytest.mark.editors

BIN = Path(sys.executable).parent

# What a user does: visits a file, types behind an emoji, completes, types on.
SESSION = """
(defun until (what test)
  (let ((end (+ (float-time) {seconds})))
    (while (not (funcall test))
      (when (> (float-time) end) (error "never: %s" what))
      (accept-process-output nil 0.05))))
;; The first time there may be nothing yet: the server only looks for its engine then.
(defun complete ()
  (let ((before (buffer-string)))
    (until "completed"
           (lambda () (completion-at-point) (not (equal before (buffer-string)))))))
(setq eglot-sync-connect {seconds} eglot-connect-timeout {seconds})
(plist-put (plist-get (default-value 'eglot-workspace-configuration) :qcn) :engine
           '(:url "{url}"))
(find-file "{file}")
(eglot-ensure)
(run-hooks 'post-command-hook)
(until "connected" #'eglot-current-server)
(message "encoding %s" (eglot-server-capable :positionEncoding))
(goto-char (point-max))
(insert "s = '👋🏽🙂é'; n = ")
(complete)
(insert "  # 🙂")
(goto-char (point-min))
(insert "# 🙂\\n")
(goto-char (point-max))
(insert "\\nt = '🙂'; u = ")
(complete)
(save-buffer)
(eglot-shutdown (eglot-current-server))
"""


def test_what_is_completed_lands_behind_an_emoji(runtime: Path, project: Path) -> None:
    emacs = unpacked("emacs")
    file = project / "a.py"
    file.write_text("a = '🙂'\n", encoding="utf-8")
    (runtime / "init.el").write_text(snippet("emacs", "elisp"), encoding="utf-8")
    with endpoint() as model:
        answers(model, "len(a)")
        session = SESSION
        for name, value in {"seconds": DEADLINE_SECONDS, "url": model.url, "file": file}.items():
            session = session.replace("{" + name + "}", str(value))
        (runtime / "session.el").write_text(session, encoding="utf-8")
        done = subprocess.run(
            [emacs, "--batch", "-Q", "-l", runtime / "init.el", "-l", runtime / "session.el"],
            capture_output=True,
            text=True,
            timeout=3 * DEADLINE_SECONDS,
            cwd=project,
            env=os.environ | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(runtime)},
        )
        assert done.returncode == 0, done.stderr
        assert "encoding utf-32" in done.stderr
        prompts = [asked["prompt"] for asked in model.sent_to("/v1/completions")]
    assert file.read_text(encoding="utf-8") == (
        "# 🙂\na = '🙂'\ns = '👋🏽🙂é'; n = len(a)  # 🙂\nt = '🙂'; u = len(a)\n"
    )
    # The server's text was Emacs's, behind each of those characters.
    wanted = "# 🙂\na = '🙂'\ns = '👋🏽🙂é'; n = len(a)  # 🙂\nt = '🙂'; u = <|fim_suffix|>"
    assert any(wanted in prompt for prompt in prompts)
