"""The published sizes have the parameters their authors say, counted on the real modules without any memory."""

from __future__ import annotations

import pytest

from graftwood.model.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_the_published_one(name: str) -> None:
    size = PUBLISHED[name]
    assert abs(size.parameters() - size.published) <= size.within * size.published


def test_counting_takes_no_memory() -> None:
    assert {parameter.device.type for parameter in PUBLISHED["gpt3-175b"].decoder().parameters()} == {"meta"}


def test_every_family_of_the_gpts_is_there() -> None:
    families = {size.fields["model_type"] for size in PUBLISHED.values()}
    assert families == {"gpt2", "gpt3", "gpt_neo", "gptj", "gpt_neox", "gpt_oss", "llama"}
    assert len(PUBLISHED) == 4 + 8 + 3 + 1 + 1 + 10 + 2 + 3 + 3


def test_gpt3_alternates_between_all_and_a_band() -> None:
    config = PUBLISHED["gpt3-175b"].decoder().config
    assert config.windows == (None, 256) * 48
