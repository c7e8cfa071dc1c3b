"""Which files may hold secrets, by name and by an unmistakable sign in the text.

Private: such a file is never shown to a model, wherever it runs. The list errs on the side of
leaving out: a template such as `.env.example` is lost to the model, which costs little.
"""

import re
from pathlib import PurePosixPath

_NAMES = frozenset(
    {
        ".dockercfg",
        ".git-credentials",
        ".htpasswd",
        ".netrc",
        "_netrc",
        ".npmrc",
        ".pgpass",
        ".pypirc",
        ".s3cfg",
        ".vault-token",
        "credentials",
        "credentials.json",
        "secrets.json",
        "secrets.toml",
        "secrets.yaml",
        "secrets.yml",
        "terraform.tfstate",
    }
)
_STEMS = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".env")
_SUFFIXES = frozenset(
    {".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".gpg", ".ppk"}
    | {".tfvars", ".env", ".envrc"}
)
_FOLDERS = frozenset({".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker"})
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")


def looks_secret(path: PurePosixPath, text: str) -> str | None:
    """Return why this file is taken for a secret, or None."""
    name = path.name.casefold()
    if name in _NAMES or path.suffix.casefold() in _SUFFIXES:
        return f"{path.name} is a usual name for secrets"
    if any(name == stem or name.startswith(stem + ".") for stem in _STEMS) or name == ".envrc":
        return f"{path.name} is a usual name for secrets"
    if folder := next((part for part in path.parts[:-1] if part.casefold() in _FOLDERS), None):
        return f"{folder} is a usual folder for secrets"
    if "PRIVATE KEY" in text and _PRIVATE_KEY.search(text):
        return "it holds a private key"
    return None
