"""Reject lists."""

from __future__ import annotations

import json

import pytest

from d2_smallobj.pascal_b.candidates import read_reject_list


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        path = tmp_path / "rejected"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_reject_list(path)

    return write_and_read


def test_exported_and_plain_lists(read):
    entries = [{"image_id": 7, "reason": "blurred"}, {"image_id": 9}]
    assert read(json.dumps({"version": 1, "rejected": entries})) == {7: "blurred", 9: ""}
    assert read('{"version": 1, "rejected": []}') == {}
    assert read("\ufeff# by hand\n\n000000000007  # blurred\n9\n") == {7: "blurred", 9: ""}
    assert read("") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("7\n7\n", "image 7 is listed twice"),
        ("7\nx.jpg\n", r"rejected, line 2: expected an image id, got 'x\.jpg'"),
        ("-7\n", "line 1: expected an image id, got '-7'"),
        (b"\xff\xfe7", "expected UTF-8 text"),
        ('{"version": 1, "rejected": [', "not a reject list .*truncated"),
        ('{"version": 2, "rejected": []}', "Invalid enum value 2"),
        ('{"version": 1}', "missing required field `rejected`"),
        ('{"version": 1, "rejected": [7]}', r"Expected `object`, got `int` - at .*\[0\]"),
        ('{"version": 1, "rejected": [{"image_id": "7"}]}', r"Expected `int`, .*\.image_id"),
        ('{"version": 1, "rejected": [{"image_id": 7, "reason": 1}]}', r"Expected `str`, .*reason"),
    ],
)
def test_malformed_lists(read, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "rejected" in str(caught.value)
