"""The host's time beside another contender's. The times themselves need a CUDA build of PyTorch."""

from __future__ import annotations

from tools.null_gpu.host_time import Beside, as_text, beside


def repeats(*seconds: float) -> list[dict[str, float]]:
    return [{"forward": second / 4, "backward": second * 3 / 4} for second in seconds]


def test_whole_updates_are_compared_repeat_by_repeat() -> None:
    assert beside(repeats(1, 2, 4), repeats(2, 8, 8)) == Beside(0.5, 0.25, 0.5)


def test_a_line_for_every_contender_says_its_parts_and_our_share() -> None:
    found = {"stacking": repeats(0.01, 0.01), "hugging-face": repeats(0.02, 0.05)}
    title, ours, theirs = as_text("A100", found).splitlines()
    assert title == "A100"
    assert ours.split() == ["stacking", "10.0", "ms:", "forward", "2.5,", "backward", "7.5"]
    assert theirs.endswith("; ours / theirs 0.35 (0.20…0.50; goal 0.5)")
