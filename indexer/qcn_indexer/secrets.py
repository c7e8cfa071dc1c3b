"""Which files may hold secrets: by name, and by unmistakable signs in the text, and where there.

Private: such a file is never shown to a model, wherever it runs. The list of names errs on the side
of leaving out: a template such as `.env.example` is lost to the model, which costs little. A sign
in the text is a shape that nothing but a secret has; one that is plainly an example or a
placeholder does not count, for code that only speaks of secrets must stay usable.

A text is read once per sign that its literal occurs for, with no expression that can go back over
what it has read: 256 KiB take a few milliseconds, whatever they hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Sign:
    """A secret's shape. Only texts that hold `literal` are searched for it.

    The group `secret`, or else all of it, is what must not be a placeholder.
    """

    what: str
    literal: str
    shape: re.Pattern[str]


def _token(what: str, prefix: str, rest: str) -> _Sign:
    """Return the sign of a token that begins a word with `prefix`."""
    literal = re.escape(prefix)
    return _Sign(what, prefix, re.compile(rf"{literal}(?<![\w-]{literal})(?:{rest})(?![\w])"))


_SIGNS = (
    _Sign(
        "a private key",
        "PRIVATE KEY",
        # What follows tells a key, or one being typed, from code that only names the line.
        re.compile(
            r"-----BEGIN (?:[A-Z]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[ \t]{0,9}(?:\\[nr]|[\r\n]|\Z)|[ \t]?[A-Za-z0-9+/]{16})"
        ),
    ),
    _token("an AWS access key", "AKIA", "[A-Z0-9]{16}"),
    _token("an AWS access key", "ASIA", "[A-Z0-9]{16}"),
    _Sign(
        "an AWS secret key",
        "aws_secret_access_key",
        re.compile(
            r"aws_secret_access_key[\"']?\s{0,9}[=:]\s{0,9}[\"']?(?P<secret>[\w/+]{40})(?![\w/+=])"
        ),
    ),
    *(_token("a GitHub token", f"gh{kind}_", "[A-Za-z0-9]{36,255}") for kind in "pousr"),
    _token("a GitHub token", "github_pat_", "[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    *(_token("a GitLab token", f"gl{kind}-", r"[\w-]{20,300}+") for kind in ("pat", "dt", "rt")),
    *(_token("a Slack token", f"xox{kind}-", r"\d[\w-]{20,250}+") for kind in "abeoprs"),
    _token("a Slack token", "xapp-", r"\d-[\w-]{20,250}+"),
    _Sign(
        "a Slack webhook",
        "hooks.slack.com/services/",
        re.compile(r"hooks\.slack\.com/services/T\w{8,12}/B\w{8,12}/\w{24}"),
    ),
    _token("a Stripe key", "sk_live_", "[A-Za-z0-9]{16,250}"),
    _token("a Stripe key", "rk_live_", "[A-Za-z0-9]{16,250}"),
    _token("a Google API key", "AIza", r"[\w-]{35}"),
    _token("a Google client secret", "GOCSPX-", r"[\w-]{28}"),
    *(
        _token("an OpenAI key", f"sk-{kind}-", r"[\w-]{40,300}+")
        for kind in ("proj", "svcacct", "admin")
    ),
    _token("an OpenAI key", "sk-", "[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"),
    _token("an Anthropic key", "sk-ant-", r"(?:api|admin|oat)\d\d-[\w-]{80,300}+"),
    _token("a Hugging Face token", "hf_", "[A-Za-z0-9]{34}"),
    _token("a Groq key", "gsk_", "[A-Za-z0-9]{52}"),
    _token("a DigitalOcean token", "dop_v1_", "[a-f0-9]{64}"),
    _token("a SendGrid key", "SG.", r"[\w-]{22}\.[\w-]{43}"),
    *(_token("a Shopify token", f"shp{kind}_", "[a-fA-F0-9]{32}") for kind in ("at", "ca", "pa")),
    _token("a Docker token", "dckr_pat_", r"[\w-]{27}"),
    _token("a Vault token", "hvs.", r"[\w-]{24,300}+"),
    _token("a Linear key", "lin_api_", "[A-Za-z0-9]{40}"),
    _token("a RubyGems key", "rubygems_", "[a-f0-9]{48}"),
    _Sign(
        "an age key",
        "AGE-SECRET-KEY-1",
        re.compile(r"AGE-SECRET-KEY-1(?P<secret>[A-Z0-9]{58})(?!\w)"),
    ),
    _Sign(
        "an Azure storage key",
        "AccountKey=",
        re.compile(r"AccountKey=(?P<secret>[\w/+]{86}==)"),
    ),
    _token("an npm token", "npm_", "[A-Za-z0-9]{36}"),
    _token("a PyPI token", "pypi-AgEIcHlwaS5vcmc", r"[\w-]{50,1000}+"),
    _token(
        "a signed JSON web token", "eyJ", r"[\w-]{10,4000}+\.eyJ[\w-]{4,8000}+\.[\w-]{20,2000}+"
    ),
    _Sign(
        "a password in an address",
        "://",
        re.compile(
            r"://(?P<user>[^\s:/@?#\"'`<>]{0,100}+):(?P<secret>[^\s/@?#\"'`<>]{4,200}+)@[\w.-]"
        ),
    ),
)
_PLACEHOLDER = re.compile(
    r"example|sample|dummy|your[-_. ]|placeholder|change_?-?me|redacted|insert|secret|passw|"
    r"passphrase|x{4}|\.{3}|\*{3}|[${}<>%()\[\]]|0123456|1234567|abcdefg|"
    # What the makers of JSON web tokens show everywhere: `{"sub":"1234567890"`.
    r"eyJzdWIiOiIxMjM0NTY3ODkwI",
    re.IGNORECASE,
)
_NO_PASSWORD = re.compile(
    r"(?:admin|bar|foo|guest|mysql|pass|postgres|pwd|root|test|tiger|user|word)+\d{0,3}",
    re.IGNORECASE,
)
# A random token of 16 letters has fewer once in many millions.
_FEWEST_CHARACTERS = 6


def looks_secret(path: PurePosixPath, text: str) -> str | None:
    """Return why this file is taken for a secret, or None."""
    return secret_by_name(path) or secret_in(text)


def secret_by_name(path: PurePosixPath) -> str | None:
    """Return why a file of this path is taken for a secret, or None."""
    name = path.name.casefold()
    if name in _NAMES or path.suffix.casefold() in _SUFFIXES:
        return f"{path.name} is a usual name for secrets"
    if any(name == stem or name.startswith(stem + ".") for stem in _STEMS) or name == ".envrc":
        return f"{path.name} is a usual name for secrets"
    return next((why for part in path.parts[:-1] if (why := secret_folder(part))), None)


def secret_folder(name: str) -> str | None:
    """Return why everything in a folder of this name is taken for a secret, or None."""
    return f"{name} is a usual folder for secrets" if name.casefold() in _FOLDERS else None


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret in a text: what it is, and the characters `start` up to `end` that give it away."""

    what: str
    start: int
    end: int


def secret_in(text: str) -> str | None:
    """Return which secret the text holds, or None."""
    first = next(secrets_in(text), None)
    return f"it holds {first.what}" if first else None


def secrets_in(text: str) -> Iterator[Secret]:
    """Yield the secrets of a text, sign by sign."""
    for sign in _SIGNS:
        if sign.literal in text:
            for found in filter(_is_real, sign.shape.finditer(text)):
                start, end = found.span("secret" if "secret" in found.groupdict() else 0)
                yield Secret(sign.what, start, end)


def _is_real(found: re.Match[str]) -> bool:
    if found[0].startswith("-----BEGIN"):
        return True
    groups = found.groupdict()
    secret = groups.get("secret", found[0])
    if _PLACEHOLDER.search(secret):
        return False
    if "user" in groups:  # chosen by people, so that nothing can be said of its characters
        return secret != groups["user"] and not _NO_PASSWORD.fullmatch(secret)
    return len(set(secret)) >= _FEWEST_CHARACTERS
