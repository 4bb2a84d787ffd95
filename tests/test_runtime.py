"""What is asked of the machine is asked so that every system has an answer."""

from __future__ import annotations

import os
import resource
import sys

import pytest
import torch

from graftwood import runtime
from graftwood.errors import ConfigError


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert (runtime.cores(), runtime.machine()["cores"]) == (7, 7)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.cores() == 1


def test_memory_is_in_bytes_whatever_the_system_counts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        ru_maxrss = 5_000_000

    monkeypatch.setattr(resource, "getrusage", lambda who: Told)
    for platform, expected in (("linux", 5_000_000 * 1024), ("darwin", 5_000_000)):
        monkeypatch.setattr(sys, "platform", platform)
        assert runtime.peak_memory_bytes(torch.device("cpu")) == expected


@pytest.mark.parametrize("device", ["cpu:x", "cpu:300", "cuda:", "gpu", "cuda:1:2", ""])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        runtime.place(device)


def test_a_device_beyond_those_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.place("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="'cuda:2' is none of the 2 that torch sees"):
        runtime.place("cuda:2")
