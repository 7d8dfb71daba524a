"""The residual vector quantiser of the ablation: losses, moving averages, revival, and the interface of FSQ."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taae.rvq import ResidualVQ

MODES = ["ema", "factorised"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(dim: int, codebooks: list[list[list[float]]], mode: str = "ema", **options) -> ResidualVQ:
    """A quantiser with given entries, no revival, and projections (if any) that change nothing."""
    options |= {"mode": mode, "code_dim": dim, "revive_below": 0.0, "init_from_batch": False}
    rvq = ResidualVQ(dim, len(codebooks[0]), len(codebooks), **options)
    with torch.no_grad():
        for stage, codebook in zip(rvq.stages, codebooks, strict=True):
            stage.codebook.copy_(torch.tensor(codebook))
            if mode == "ema":
                stage.sums.copy_(stage.codebook)
            else:
                for layer in (stage.project_in, stage.project_out):
                    torch.nn.init.eye_(layer.weight)
                    torch.nn.init.zeros_(layer.bias)
    return rvq


def train(rvq: ResidualVQ, batches: list[torch.Tensor]) -> ResidualVQ:
    optimizer = torch.optim.Adam(rvq.parameters(), lr=1e-2) if list(rvq.parameters()) else None
    for latents in batches:
        codes, _, loss = rvq.train()(latents)
        if optimizer is not None:
            optimizer.zero_grad()
            ((codes - latents).square().mean() + loss).backward()
            optimizer.step()
    return rvq.eval()


@pytest.mark.parametrize(
    ("codebook_size", "num_stages", "frame_rate_hz", "bps"),
    [(1024, 2, 75.0, 1500), (1024, 2, 50.0, 1000), (2048, 8, 12.5, 1100), (1025, 1, 1.0, 11)],
)
def test_bit_rates_are_those_that_table_2_gives_for_encodec_dac_and_mimi(codebook_size, num_stages, frame_rate_hz, bps):
    assert ResidualVQ(1, codebook_size, num_stages).bits_per_second(frame_rate_hz) == bps


# --- losses and gradients, by hand ---


def test_the_commitment_loss_of_moving_average_stages_is_summed_over_stages():
    rvq = plain(1, [[[0.0], [10.0]], [[-1.0], [1.5]]]).eval()
    latents = torch.tensor([[[1.0], [2.0], [9.0]]])
    codes, tokens, loss = rvq(latents)
    assert tokens.tolist() == [[[0, 1], [0, 1], [1, 0]]]
    assert codes.flatten().tolist() == [1.5, 1.5, 9.0]
    # Residuals 1, 2, -1 after stage 0 and -0.5, 0.5, 0 after stage 1.
    assert loss.item() == pytest.approx(0.25 * (1 + 4 + 1) / 3 + 0.25 * (0.25 + 0.25 + 0) / 3)


def test_factorised_codes_are_chosen_by_angle_and_pay_codebook_and_commitment_loss():
    rvq = plain(2, [[[4.0, 0.0], [0.0, 0.5]]], "factorised", commitment_weight=0.5).eval()
    codes, tokens, loss = rvq(torch.tensor([[[0.5, 0.4]]]))
    # Entry 1 is nearer, entry 0 has the smaller angle.
    assert (tokens.item(), codes.tolist()) == (0, [[[4.0, 0.0]]])
    assert loss.item() == pytest.approx(1.5 * (3.5**2 + 0.4**2) / 2)


@pytest.mark.parametrize("mode", MODES)
def test_the_straight_through_gradient_is_the_identity(mode):
    rvq = plain(3, [noise(8, 3, seed=stage).tolist() for stage in range(3)], mode)
    latents, weight = noise(2, 5, 3, seed=7).requires_grad_(), noise(2, 5, 3, seed=8)
    codes, _, _ = rvq(latents)
    (codes * weight).sum().backward()
    assert torch.equal(latents.grad, weight) if mode == "ema" else torch.allclose(latents.grad, weight, atol=1e-6)


def test_the_commitment_loss_pulls_latents_to_their_entries_through_all_stages():
    rvq = plain(1, [[[0.0], [10.0]], [[-1.0], [1.5]]]).eval()
    latents = torch.tensor([[[1.0], [9.0]]], requires_grad=True)
    rvq(latents)[2].backward()
    # d/dx of 0.25 * mean(residual^2) of each stage: 0.25 * 2 * residual / 2 items; residuals 1, -0.5 and -1, 0.
    assert latents.grad.flatten().tolist() == pytest.approx([0.25 * (1 - 0.5), 0.25 * (-1 + 0)])


def test_the_codebook_loss_pulls_only_the_chosen_factorised_entry():
    rvq = plain(2, [[[4.0, 0.0], [0.0, 0.5]]], "factorised").eval()
    rvq(torch.tensor([[[0.5, 0.4]]]))[2].backward()
    assert rvq.stages[0].codebook.grad.flatten().tolist() == pytest.approx([3.5, -0.4, 0, 0])  # 2 (e - v) / 2 values


# --- learning ---


def test_a_moving_average_update_is_the_one_by_hand():
    rvq = plain(1, [[[0.0], [10.0]]], decay=0.5).train()
    codes, _, _ = rvq(torch.tensor([[[1.0], [2.0], [9.0]]]))
    assert codes.flatten().tolist() == [0.0, 0.0, 10.0]  # the entries from before the update
    stage = rvq.stages[0]
    assert stage.usage.tolist() == [1.5, 1.0]  # (1 + 2) / 2, (1 + 1) / 2
    assert stage.sums.flatten().tolist() == [1.5, 9.5]  # (0 + 3) / 2, (10 + 9) / 2
    assert stage.codebook.flatten().tolist() == [1.0, 9.5]
    assert stage.num_updates.item() == 1


def test_an_entry_that_nothing_chooses_stays_where_it_is():
    rvq = plain(1, [[[0.0], [10.0]]], decay=0.5).train()
    for _ in range(200):  # its averages fall below the smallest float
        rvq(torch.tensor([[[1.0]]]))
    assert rvq.stages[0].usage.tolist() == [1.0, 0.0]
    assert rvq.stages[0].codebook.flatten().tolist() == pytest.approx([1.0, 10.0])


def test_evaluation_changes_nothing():
    rvq = ResidualVQ(4, 16, 2).eval()
    before = copy.deepcopy(rvq.state_dict())
    rvq(noise(2, 9, 4))
    assert all(torch.equal(before[key], value) for key, value in rvq.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_two_clusters_are_learned(mode):
    centres = torch.tensor([[3.0, 1.0], [-2.0, 2.0]])
    batches = [centres[torch.arange(64) % 2].view(2, 32, 2) + 0.1 * noise(2, 32, 2, seed=i) for i in range(400)]
    rvq = train(ResidualVQ(2, 2, 1, mode=mode, code_dim=2, decay=0.9), batches)
    codes = rvq.detokenize(torch.tensor([[[0], [1]]]))[0].detach()
    codes = codes[codes[:, 0].argsort(descending=True)]
    # At decay 0.9 the mean of some 600 vectors of deviation 0.1: standard error 0.004; Adam hovers a little more.
    assert (codes - centres).abs().max() < (0.015 if mode == "ema" else 0.05)


def test_two_entries_for_a_gaussian_are_the_lloyd_max_quantiser():
    rvq = train(ResidualVQ(1, 2, 1), [noise(8, 128, 1, seed=i) for i in range(600)])
    entries = sorted(rvq.stages[0].codebook.flatten().tolist())
    best = math.sqrt(2 / math.pi)
    assert entries == pytest.approx([-best, best], abs=0.02)  # 100 batches of 1024: standard error 0.003
    latents = noise(8, 4096, 1, seed=1000)
    error = (rvq.detokenize(rvq.tokenize(latents)) - latents).square().mean().item()
    assert error == pytest.approx(1 - 2 / math.pi, abs=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_every_stage_lowers_the_error(mode):
    # Without dropout, gradients train the factorised stages for their sum alone, and three may be worse than two.
    dropout = 0.0 if mode == "ema" else 1.0
    rvq = ResidualVQ(4, 16, 4, mode=mode, code_dim=4, stage_dropout=dropout)
    train(rvq, [noise(4, 64, 4, seed=i) for i in range(200)])
    latents = noise(8, 256, 4, seed=1000)
    tokens = rvq.tokenize(latents)
    errors = [1.0] + [(rvq.detokenize(tokens[..., :n]) - latents).square().mean().item() for n in range(1, 5)]
    assert all(after < 0.6 * before for before, after in zip(errors, errors[1:], strict=False))
    # One bit per dimension and stage: no quantiser of a Gaussian goes below 1/4 of the variance per stage (Shannon).
    assert 4**-4 < errors[-1] < 0.05


def test_the_first_entries_come_from_the_first_batch():
    latents = noise(2, 20, 3)
    rvq = ResidualVQ(3, 8, 2, revive_below=0.0, decay=0.999999).train()
    rvq(latents)
    distances = (rvq.stages[0].codebook[:, None] - latents.flatten(0, 1)).abs().amax(dim=2).amin(dim=1)
    assert distances.max() < 1e-4  # the update after it has moved them by parts in a million
    assert len(rvq.stages[0].codebook.unique(dim=0)) == 8


@pytest.mark.parametrize("mode", MODES)
def test_an_entry_that_falls_out_of_use_is_revived_from_the_batch(mode):
    def after_training(revive_below: float) -> torch.Tensor:
        rvq = plain(2, [[[1.0, 0.0], [0.0, 1.0], [-1000.0, -1000.0]]], mode, decay=0.5)
        rvq.stages[0].revive_below = revive_below
        for _ in range(8):
            rvq.train()(batch)
        return rvq.stages[0].codebook.detach()

    batch = noise(1, 30, 2).abs()
    assert after_training(0.0)[2].tolist() == [-1000.0, -1000.0]
    revived = after_training(0.1)
    assert revived[2].min() >= 0 and revived[2].max() <= batch.max()
    assert torch.equal(revived, after_training(0.1))


def test_a_revived_entry_starts_with_the_use_of_an_average_one():
    rvq = plain(1, [[[0.0], [1000.0]]], decay=0.0)
    rvq.stages[0].revive_below = 0.1
    rvq.train()(torch.full((1, 6, 1), 0.5))
    assert rvq.stages[0].usage.tolist() == [6.0, 3.0]
    assert rvq.stages[0].codebook.flatten().tolist() == [0.5, 0.5]
    assert rvq.stages[0].sums.flatten().tolist() == [3.0, 1.5]


def test_revival_draws_anew_in_every_step():
    stage, drawn = ResidualVQ(1, 1, 1).stages[0], set()
    for step in range(10):
        stage.num_updates.fill_(step)
        stage.replace(torch.tensor([True]), torch.arange(1000.0)[:, None], 1.0)
        drawn.add(stage.codebook.item())
    assert len(drawn) >= 8  # ten draws of 1000: three repeats have a probability of 1e-5


def test_dropout_keeps_the_first_stages_of_an_item_only_in_training():
    rvq = ResidualVQ(3, 16, 3, stage_dropout=1.0, revive_below=0.0, init_from_batch=False).train()
    frozen = copy.deepcopy(rvq).eval()
    latents = noise(60, 4, 3)
    codes, tokens, loss = rvq(latents, generator=torch.Generator().manual_seed(0))
    partial = torch.stack([frozen.detokenize(tokens[..., :n]) for n in (1, 2, 3)])  # (3, b, s, d)
    is_equal = (partial - codes).abs().amax(dim=(2, 3)) < 1e-5  # (3, b)
    assert (is_equal.sum(0) == 1).all()
    assert is_equal.sum(1).min() >= 10  # 20 of each expected; fewer than 10 has a probability below 0.3 %
    assert loss < frozen(latents)[2]
    assert torch.allclose(frozen(latents)[0], partial[2], atol=1e-6)


# --- inference ---


@pytest.mark.parametrize("mode", MODES)
def test_detokenized_tokens_are_the_codes_of_forward(mode):
    rvq = train(ResidualVQ(6, 32, 3, mode=mode), [noise(2, 50, 6, seed=i) for i in range(5)])
    latents = noise(2, 40, 6, seed=99)
    codes, tokens, _ = rvq(latents)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 40, 3)
    assert torch.equal(rvq.tokenize(latents), tokens)
    assert torch.equal(rvq.detokenize(tokens), codes)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_does_not_change_tokens(mode):
    rvq = train(ResidualVQ(6, 256, 2, mode=mode), [noise(2, 200, 6)])
    latents = noise(2, 200, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        codes, tokens, _ = rvq(latents)
    assert torch.equal(tokens, rvq.tokenize(latents))
    assert torch.equal(codes, rvq.detokenize(tokens))


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_quantiser_goes_on_as_if_never_stopped(mode):
    options = {"mode": mode, "decay": 0.5, "revive_below": 0.9}  # revives in nearly every step
    first = ResidualVQ(4, 32, 2, **options).train()
    batches = [noise(1, 40, 4, seed=i) for i in range(8)]
    with torch.no_grad():
        for latents in batches[:4]:
            first(latents)
        second = ResidualVQ(4, 32, 2, **options).train()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for latents in batches[4:]:
            first(latents), second(latents)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from taae.rvq import ResidualVQ
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
batches = torch.load(f"{folder}/batches.pt")
for name, options in {"sums": dict(revive_below=0.0, init_from_batch=False), "all": dict(revive_below=0.9)}.items():
    rvq = ResidualVQ(3, 16, 2, decay=0.5, **options).train()
    for batch in batches:
        rvq(batch[rank : rank + 1])
    torch.save(rvq.state_dict(), f"{folder}/{name}{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_learn_what_one_learns_and_revive_the_same_entries(tmp_path):
    batches = [noise(2, 40, 3, seed=i) for i in range(4)]
    torch.save(batches, tmp_path / "batches.pt")
    environment, root = os.environ | {"OMP_NUM_THREADS": "1"}, Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [subprocess.Popen([*command, rank, str(tmp_path)], cwd=root, env=environment) for rank in "01"]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:  # a rank whose partner has died waits for half an hour
        [process.kill() for process in ranks]
    alone = ResidualVQ(3, 16, 2, decay=0.5, revive_below=0.0, init_from_batch=False).train()
    for batch in batches:
        alone(batch)
    together = torch.load(tmp_path / "sums0.pt")
    for key, value in alone.state_dict().items():
        assert torch.allclose(together[key], value, atol=1e-5), key  # the same sums in another order
    both = [torch.load(tmp_path / f"all{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(value, both[1][key]) for key, value in both[0].items())


def test_what_does_not_fit_is_refused():
    rvq = ResidualVQ(4, 16, 2).eval()
    with pytest.raises(ValueError, match=r"latents must be \(batch, frames, 4\), got \(1, 5, 3\)"):
        rvq.tokenize(noise(1, 5, 3))
    with pytest.raises(ValueError, match=r"0 ... 15, got 0 ... 16"):
        rvq.detokenize(torch.tensor([[[0, 16]]]))
    with pytest.raises(ValueError, match=r"1 to 2"):
        rvq.detokenize(torch.zeros(1, 1, 3, dtype=torch.int64))
    for wrong, text in (({"codebook_size": 0}, "at least 1"), ({"decay": 1.0}, "decay")):
        with pytest.raises(ValueError, match=text):
            ResidualVQ(**{"dim": 4, "codebook_size": 16, "num_stages": 2} | wrong)
