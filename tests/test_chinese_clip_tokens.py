"""Chinese-CLIP's tokens: the same as the original's."""

from .oracles import chinese_clip


def test_the_oracle_is_there() -> None:
    assert chinese_clip().tokenize("你好").shape == (1, 52)
    assert chinese_clip().image_transform(224)
