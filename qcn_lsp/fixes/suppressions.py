"""Comments and annotations that tell a scanner, a type checker or a compiler to be silent."""

import re

# One pattern each; searched in the whole text, for what is no comment silences nothing and a fix
# does not need to spell it either.
_SIGNS = re.compile(
    r"\#\s*(?:flake8:\s*|ruff:\s*)?noqa\b"
    r"|\#\s*nosec\b|\bnosemgrep\b|\bsemgrep-ignore\b|\bnosonar\b|\bdevskim:\s*ignore"
    r"|\bqcn:\s*(?:ignore|off|disable)|\blgtm\s*\[|\bcodeql\s*\[|\bcoverity\s*\[|\bsnyk:\s*ignore"
    r"|\bast-grep-ignore\b|\bgitleaks:allow\b|\bpragma:\s*(?:allowlist|no\s*cover|whitelist)"
    r"|\#\s*type:\s*ignore|\#\s*(?:mypy|pyright|pylint|pyre|pytype|bandit|skipcq)\b\s*[:=-]"
    r"|\#\s*(?:skipcq|pyre-(?:ignore|fixme))\b|\bno_type_check\b"
    r"|//\s*nolint\b|//\s*#\s*nosec\b|//\s*lint:ignore\b|//\s*nosec\b|//\s*skipcq\b"
    r"|\beslint-disable|\b(?:jshint|jslint)\s+ignore|\btslint:disable|\bbiome-ignore\b"
    r"|\boxlint-disable|@ts-(?:ignore|expect-error|nocheck)\b|\bdeno-lint-ignore"
    r"|@SuppressWarnings\b|@SuppressFBWarnings\b|@SuppressLint\b|\bnoinspection\b|\bNOPMD\b"
    r"|\bCHECKSTYLE[: ]\s*OFF|@Generated\b|\bCPD-OFF\b"
    r"|\bNOLINT(?:NEXTLINE|BEGIN)?\b|\#\s*pragma\s+(?:warning|(?:GCC|clang)\s+diagnostic)"
    r"|\b_Pragma\s*\(|\bcppcheck-suppress|\bflawfinder:\s*ignore|\bRATS:\s*ignore|\bits4:\s*ignore"
    r"|\#!?\[\s*allow\s*\(|\#!?\[\s*expect\s*\("
    r"|\brubocop:\s*(?:disable|todo)|\bbrakeman:ignore|\#\s*shellcheck\s+disable"
    r"|\bphpcs:(?:ignore|disable)|@codingStandardsIgnore|@phpstan-ignore|@psalm-suppress"
    r"|\bSuppressMessage\b|\bluacheck:\s*ignore",
    re.IGNORECASE,
)


def added_suppression(before: str, after: str) -> str | None:
    """Return a suppression of which `after` has more than `before`, or None.

    A wider one in the place of another (`# noqa` for `# noqa: S602`) counts: whole lines that
    hold one are compared.
    """
    known = _lines(before)
    for line, sign in _lines(after):
        if (line, sign) in known:
            known.remove((line, sign))
        else:
            return sign
    return None


def _lines(text: str) -> list[tuple[str, str]]:
    """What follows each sign on its line, with the sign."""
    found = []
    for match in _SIGNS.finditer(text):
        end = text.find("\n", match.end())
        rest = text[match.start() : end if end >= 0 else len(text)].rstrip()
        found.append((rest, match[0]))
    return found
