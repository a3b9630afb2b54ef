"""What engines are given: seeds."""

from tests.support.prompts import ask


def test_the_attempts_at_a_job_without_a_seed_share_one_that_no_other_job_has():
    seeds = [ask("?", key=key).seed for key in ("job_a.1", "job_a.12", "job_b.1", "job_c")]

    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_seed_that_was_asked_for_is_the_seed():
    assert ask("?", key="job_a.1", seed=0).seed == 0
