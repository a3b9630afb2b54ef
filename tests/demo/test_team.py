"""Members of a training team: separate processes that agree on gradients to the last bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.demo.team import Team

MEMBER = """
import sys
import torch
from worker.demo.team import Team

team = Team("cpu")
torch.manual_seed(team.rank)
weights = [torch.zeros(3, 2, requires_grad=True), torch.zeros(5, requires_grad=True)]
for weight in weights:
    weight.grad = torch.rand_like(weight)
number = team.average(weights, 10.0 * team.rank)
torch.save((number, [weight.grad for weight in weights]), f"{sys.argv[1]}/{team.rank}")
team.wait()
team.leave()
"""


def test_two_members_go_on_with_the_mean_of_their_gradients(tmp_path: Path):
    (tmp_path / "member.py").write_text(MEMBER)

    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*two, str(tmp_path / "member.py"), str(tmp_path)],
        check=True,
        timeout=120,
        capture_output=True,
    )

    (number, ours), (same_number, theirs) = (torch.load(tmp_path / rank) for rank in "01")
    assert number == same_number == 5.0
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert [one.shape for one in ours] == [(3, 2), (5,)]
    torch.testing.assert_close(ours[0], (_drawn(0) + _drawn(1)) / 2)


def test_one_alone_is_a_team(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)

    team = Team("cpu")

    assert team.leads
    assert team.average([weight], 3.5) == 3.5
    assert weight.grad.tolist() == [1, 1]


def _drawn(rank: int) -> torch.Tensor:
    torch.manual_seed(rank)
    return torch.rand(3, 2)
