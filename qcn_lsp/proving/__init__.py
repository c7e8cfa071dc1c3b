"""The proving ground: project code runs here, and nowhere else, to show what a change does.

Three stages. *Deploy*: a private copy of the workspace in a sandbox, a candidate's edits in it.
*Evaluate*: the project's tests, or any other command, within limits. *Post-process*: what the copy
became, and logs as plain bounded text. Code of the project, its tests and what a model wrote are
all untrusted; so is whatever comes out. Where no sandbox holds against the suite of attacks on this
machine, nothing of a project is run.

    ground = await ProvingGround.find(settings.security.sandbox)
    if ground.holds:
        async with ground.deploy(root, {"app.py": text}) as view:
            outcome = await view.run_tests(find_suites(root)[0], changed={"app.py": {12, 13}})

The language server's process only looks at files, and speaks with the launcher in the sandbox.
"""

from qcn_lsp.proving.ground import ProvingGround
from qcn_lsp.proving.outcomes import Change, EndedBy, Limits, ProvingError, Run, TestOutcome
from qcn_lsp.proving.suites import TestSuite, find_suites
from qcn_lsp.proving.view import View

__all__ = [
    "Change",
    "EndedBy",
    "Limits",
    "ProvingError",
    "ProvingGround",
    "Run",
    "TestOutcome",
    "TestSuite",
    "View",
    "find_suites",
]
