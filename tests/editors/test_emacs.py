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

BEGIN = """
(defun until (what test)
  (let ((end (+ (float-time) SECONDS)))
    (while (not (funcall test))
      (when (> (float-time) end) (error "never: %s" what))
      (accept-process-output nil 0.05))))
;; The first time there may be nothing yet: the server only looks for its engine then.
(defun complete ()
  (let ((before (buffer-string)))
    (until "completed"
           (lambda () (completion-at-point) (not (equal before (buffer-string)))))))
(setq eglot-sync-connect SECONDS eglot-connect-timeout SECONDS)
(plist-put (plist-get (default-value 'eglot-workspace-configuration) :qcn) :engine
           '(:url "URL"))
(find-file "FILE")
(eglot-ensure)
(run-hooks 'post-command-hook)
(until "connected" #'eglot-current-server)
(message "encoding %s" (eglot-server-capable :positionEncoding))
"""
END = """
(save-buffer)
(eglot-shutdown (eglot-current-server))
"""
# Typing behind an emoji, completing, typing on.
COMPLETING = """
(goto-char (point-max))
(insert "s = '👋🏽🙂é'; n = ")
(complete)
(insert "  # 🙂")
(goto-char (point-min))
(insert "# 🙂\\n")
(goto-char (point-max))
(insert "\\nt = '🙂'; u = ")
(complete)
"""
LOOKING = """
(until "found" (lambda () (flymake-start) (flymake-diagnostics))) ; no idle time in batch mode
(dolist (found (flymake-diagnostics))
  (message "found %s" (buffer-substring (flymake-diagnostic-beg found)
                                        (flymake-diagnostic-end found))))
"""


def emacs(home: Path, file: Path, engine_url: str, session: str) -> str:
    """Run a session in a file, set up by the page; return what Emacs said."""
    program = unpacked("emacs")
    begin = BEGIN.replace("SECONDS", str(DEADLINE_SECONDS)).replace("URL", engine_url)
    (home / "init.el").write_text(snippet("emacs", "elisp"), encoding="utf-8")
    (home / "session.el").write_text(begin.replace("FILE", str(file)) + session + END, "utf-8")
    done = subprocess.run(
        [program, "--batch", "-Q", "-l", home / "init.el", "-l", home / "session.el"],
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE_SECONDS,
        cwd=file.parent,
        env=os.environ | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_what_is_completed_lands_behind_an_emoji(runtime: Path, project: Path) -> None:
    file = project / "a.py"
    file.write_text("a = '🙂'\n", encoding="utf-8")
    with endpoint() as model:
        answers(model, "len(a)")
        assert "encoding utf-32" in emacs(runtime, file, model.url, COMPLETING)
        prompts = [asked["prompt"] for asked in model.sent_to("/v1/completions")]
    assert file.read_text(encoding="utf-8") == (
        "# 🙂\na = '🙂'\ns = '👋🏽🙂é'; n = len(a)  # 🙂\nt = '🙂'; u = len(a)\n"
    )
    # The server's text was Emacs's, behind each of those characters.
    wanted = "# 🙂\na = '🙂'\ns = '👋🏽🙂é'; n = len(a)  # 🙂\nt = '🙂'; u = <|fim_suffix|>"
    assert any(wanted in prompt for prompt in prompts)


def test_a_finding_is_marked_where_it_stands(runtime: Path, project: Path) -> None:
    file = project / "load.py"
    file.write_text("import pickle, sys\ns = '🙂'; d = pickle.loads(sys.stdin.buffer.read())\n")
    said = emacs(runtime, file, "http://127.0.0.1:9", LOOKING)
    assert "found pickle.loads" in said
