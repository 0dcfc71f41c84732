"""Parameter counts of the presets against published totals."""

import pytest

from mmrl.models import minimax_m1, parameter_count
from mmrl.plan.presets import PRESETS, minimax_m2, qwen2_5_7b


def test_m1_has_its_published_parameters():
    assert parameter_count(minimax_m1()) == (456_089_655_296, 45_944_920_064)


def test_m2_has_its_published_parameters():
    total, active = parameter_count(minimax_m2())
    m, layers = 3072, 62
    attention = 2 * m * 6144 + 2 * m * 1024 + 6144 + 1024
    experts = 256 * 3 * m * 1536 + 256 * m + 256
    assert total == 2 * 200_064 * m + m + layers * (attention + experts + 2 * m)
    # Hugging Face's 228.7B; 9.80B active without embedding and head.
    assert round(total / 1e9, 1) == 228.7 and round(active / 1e9, 2) == 9.80


def test_qwen_has_its_published_parameters():
    total, active = parameter_count(qwen2_5_7b())
    # 7.61B and 6.53B without embeddings by its card; 15,231,233,024 bytes in bfloat16 by its index.
    assert total == 15_231_233_024 // 2
    assert (total // 10**7, round(active / 1e9, 2)) == (761, 6.53)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_changes(name):
    assert PRESETS[name](remat="none").remat == "none"
