"""Configurations: shapes follow from them alone, and what makes no sense is named."""

import re
from typing import Any

import pytest

from modalloy.errors import SpecError
from modalloy_pointcloud.configuration import (
    DEFAULT_POINTNET,
    point_bert_shape,
    pointnet_config,
    pointnet_shape,
)

BERT = {"model": "owner/name"}


def test_shapes() -> None:
    assert pointnet_shape(DEFAULT_POINTNET)[0] == 4
    assert pointnet_shape({"tokens": 4, "features": 32}) == (4, 32)
    assert point_bert_shape(BERT) == (513, 384)
    assert point_bert_shape(BERT | {"pool": "cls+max", "tokens": 2}) == (2, 384)
    small = {"groups": 8, "tokens": 9, "width": 12, "features": 12, "heads": 3}
    assert point_bert_shape(BERT | small) == (9, 12)


def test_the_default_is_spelled_out() -> None:
    assert pointnet_config(DEFAULT_POINTNET) == pointnet_config({}), "parent.json hides nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point": 5}, "point is not a known key"),
        ({"points": 0}, "encoder 'pointnet': must be positive, found {'points': 0}"),
        ({"points": 10**12}, "must be at most 65536, found {'points': 1000000000000}"),
        ({"points": 10.5}, "points must be int, found 10.5"),
        ({"colours": 1}, "colours must be bool, found 1"),
    ],
)
def test_pointnet_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        pointnet_shape(DEFAULT_POINTNET | change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model is missing"),
        (BERT | {"pool": "mean"}, "pool"),
        (BERT | {"pool": "cls"}, "tokens is 513, but pool 'cls' makes 1; set tokens to 1"),
        (BERT | {"tokens": 4}, "tokens is 4, but pool 'none' makes 513; set tokens to 513"),
        (BERT | {"width": 192}, "features is 384, but width makes 192; set features to 192"),
        (BERT | {"points": 100}, "groups is 512, more than the 100 points of a cloud"),
        (BERT | {"heads": 5}, "width 384 cannot be cut into 5 heads"),
        (BERT | {"depth": 0}, "must be positive, found {'depth': 0}"),
    ],
)
def test_point_bert_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        point_bert_shape(config)
    assert caught.value.subject == "encoder 'point-bert'"
