"""Secrets in a text as findings; the signs are those that keep them from the model."""

from collections.abc import Iterator

from qcn_indexer.secrets import secrets_in

from qcn_lsp.scan.finding import Finding, Proof, Severity

_RATIONALE = (
    "Whoever can read this file can use it. Withdraw it where it was issued, and read its "
    "successor from the environment or a secret store."
)


def secret_findings(text: str) -> Iterator[Finding]:
    """Yield the secrets that a text of any language holds."""
    for secret in secrets_in(text):
        yield Finding(
            rule="secret." + "-".join(secret.what.split()[1:]).lower(),
            cwe=798,
            severity=Severity.ERROR,
            proof=Proof.WITNESS,
            message=f"This looks like {secret.what}.",
            rationale=_RATIONALE,
            start=secret.start,
            end=secret.end,
        )
