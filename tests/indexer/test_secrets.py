"""Secrets known by their text, and code that only speaks of secrets.

The tokens are made up, and put together here so that no scanner takes this file for a leak.
"""

import random
import string
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qcn_indexer.secrets import looks_secret, secret_folder, secret_in
from sampling import examples

_random = random.Random(7)


def letters(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_random.choices(alphabet, k=count))


HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + "2345679"
TOKENS = [
    ("an AWS access key", "AKIA" + letters(16, UPPER)),
    ("an AWS access key", "ASIA" + letters(16, UPPER)),
    ("an AWS secret key", 'aws_secret_access_key = "' + letters(39) + '/"'),
    ("a GitHub token", "ghp" + "_" + letters(36)),
    ("a GitHub token", "ghs" + "_" + letters(36)),
    ("a GitHub token", "github" + "_pat_" + letters(22) + "_" + letters(59)),
    ("a GitLab token", "glpat" + "-" + letters(20)),
    ("a GitLab token", "glpat" + "-" + letters(27) + ".01." + letters(9)),
    ("a GitLab token", "glrt" + "-" + letters(20)),
    ("a Slack token", "xoxb" + "-2" + letters(11, "3456789") + "-" + letters(24)),
    ("a Slack token", "xapp" + "-1-A" + letters(10) + "-" + letters(64, HEX)),
    ("a Slack webhook", "hooks.slack.com/" + f"services/T{letters(9)}/B{letters(9)}/{letters(24)}"),
    ("a Stripe key", "sk" + "_live_" + letters(24)),
    ("a Stripe key", "rk" + "_live_" + letters(24)),
    ("a Google API key", "AIza" + "Sy" + letters(33)),
    ("a Google client secret", "GOCSPX" + "-" + letters(28)),
    ("an OpenAI key", "sk" + "-proj-" + letters(120)),
    ("an OpenAI key", "sk" + "-" + letters(20) + "T3Blbk" + "FJ" + letters(20)),
    ("an Anthropic key", "sk" + "-ant-api03-" + letters(95)),
    ("a Hugging Face token", "hf" + "_" + letters(34)),
    ("a Groq key", "gsk" + "_" + letters(52)),
    ("a DigitalOcean token", "dop" + "_v1_" + letters(64, HEX)),
    ("a SendGrid key", "SG" + "." + letters(22) + "." + letters(43)),
    ("a Shopify token", "shpat" + "_" + letters(32, HEX)),
    ("a Docker token", "dckr" + "_pat_" + letters(27)),
    ("a Vault token", "hvs" + "." + letters(90)),
    ("a Linear key", "lin" + "_api_" + letters(40)),
    ("a RubyGems key", "rubygems" + "_" + letters(48, HEX)),
    ("an age key", "AGE-SECRET" + "-KEY-1" + letters(58, UPPER)),
    ("an Azure storage key", "AccountName=a;" + "AccountKey=" + letters(85) + "/==;"),
    ("an npm token", "npm" + "_" + letters(36)),
    ("a PyPI token", "pypi" + "-AgEIcHlwaS5vcmc" + letters(150)),
    ("a signed JSON web token", "eyJ" + f"hbGciOiJIUzI1NiJ9.eyJ{letters(60)}.{letters(43)}"),
    ("a password in an address", "postgres" + "://app:" + letters(12) + "@db.internal:5432/app"),
    ("a password in an address", "redis" + "://:" + letters(20) + "@cache:6379"),
    ("a private key", "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIE"),
    ("a private key", "-----BEGIN " + "OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1rZXk"),
    ("a private key", "-----BEGIN " + "PRIVATE KEY-----" + letters(64)),
    ("a private key", "-----BEGIN " + "PRIVATE KEY-----" + "MIIEsecretXXXX" + letters(64)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "token"), TOKENS, ids=[what for what, _ in TOKENS])
@pytest.mark.parametrize("frame", ["{}", 'key = "{}"\n', "- curl -H 'Auth: Bearer {}'", "a={}&b=1"])
def test_a_token_is_known_wherever_it_stands(what: str, token: str, frame: str) -> None:
    text = "import os\n" * 50 + frame.format(token) + "\nprint(1)\n" * 50
    assert secret_in(text) == f"it holds {what}"
    assert looks_secret(PurePosixPath("src/a.py"), text) == f"it holds {what}"


HARMLESS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
    "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
    "AKIA" + "X" * 16,
    "ghp_" + "x" * 36,
    "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "ghp_<token>",
    "ghp_${GITHUB_TOKEN}",
    "github_pat_short",
    "glpat-your-token-goes-here-please",
    "sk-proj-...",
    "sk-" + "learn-model-selection-cross-validate-with-a-long-name",
    "sk_live_",
    "sk_test_" + letters(24),
    "xoxb-not-a-real-token",
    "hf_hub_download(repo_id)",
    "MSG.format and SG.short, hvs.read(path)",
    "rubygems_version = '3.4'; import lin_api_client",
    "AccountKey=<your key>;EndpointSuffix=core.windows.net",
    "npm_config_registry=x; npm_package_version_and_more_words_to_come",
    "the prefix is AKIA, or ASIA for temporary keys",
    "re.compile(r'AKIA[0-9A-Z]{16}')",
    "someAKIA" + letters(16, UPPER) + "inbase64",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0"
    ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    "postgres://postgres:postgres@localhost/db",
    "postgres://user:password@localhost/db",
    "mysql+pymysql://scott:tiger@192.168.0.134/test",
    "postgres://user:pass123@localhost/db",
    "postgres://app:${DB_PASSWORD}@db/app",
    "postgres://app:%s@db/app",
    "postgres://{user}:{password}@{host}",
    "amqp://guest:guest@rabbit",
    "amqp://shop:shop@rabbit",
    "https://example.org:8080/@scope/package",
    "git@github.com:owner/name.git and http://a.b/c:d@e",
    "-----BEGIN PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----",
    "a PRIVATE KEY is never committed",
    'START = b"-----BEGIN OPENSSH PRIVATE KEY-----"',
    "if line.startswith('-----BEGIN PRIVATE KEY-----'): ...",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_an_example_a_placeholder_and_code_about_secrets_are_none(text: str) -> None:
    assert secret_in(text) is None


def test_a_placeholder_does_not_hide_the_real_one_after_it() -> None:
    assert secret_in("AKIA" + "IOSFODNN7EXAMPLE\n" + "AKIA" + letters(16, UPPER))


def test_folders_of_secrets_are_known_by_name() -> None:
    assert secret_folder(".SSH") == ".SSH is a usual folder for secrets"
    assert secret_folder("ssh") is None


@pytest.mark.long
@examples(sample=100, full=2000)
@given(
    piece=st.sampled_from(
        [*(token[:length] for _, token in TOKENS for length in (4, 12, 30)), "://a:", "eyJa."]
    ),
    times=st.integers(1000, 20_000),
)
def test_a_hostile_text_is_read_to_its_end(piece: str, times: int) -> None:
    """What would be searched for again from each place would not end within the test's limit."""
    secret_in((piece * times)[: 1 << 18])
