"""Which configuration a chip takes."""

import pytest
import torch
from qcn_kernels import chip

SHIPPED = {80: "A100", 89: "RTX 40", 90: "H100"}


@pytest.mark.parametrize(
    ("capability", "taken"),
    [(80, "A100"), (86, "A100"), (89, "RTX 40"), (90, "H100"), (120, "H100")],
)
def test_an_unknown_chip_takes_the_next_older_entry(
    monkeypatch: pytest.MonkeyPatch, capability: int, taken: str
) -> None:
    monkeypatch.setattr(chip, "capability", lambda _: capability)
    assert chip.configuration(SHIPPED, torch.empty(0)) == taken


def test_a_chip_that_is_too_old_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chip, "capability", lambda _: 75)
    with pytest.raises(RuntimeError, match=r"capability 7\.5; ours need 8\.0 .* on the CPU"):
        chip.configuration(SHIPPED, torch.empty(0))
