"""Greedy decoding beside transformers and llama.cpp: 64 tokens in answer to eight questions, one stream and eight.

python -m bench.decode_speed --peer-python PATH
"""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path
from statistics import median

from bench import workload
from bench.common import Figure, Side, finish, need, options, peer_has, require_quiet_machine, run, say, take_turns

STREAMS, NEW_TOKENS = 8, 64
CHATS = Path(__file__).parent / "keep" / "chats.txt"  # questions that the base answers in more than 64 tokens


def rates(side: Side, key: str, tokens: int) -> list[float]:
    """New tokens a second of every turn, reading the prompts included."""
    return [tokens / turn[key] for turn in side.turns]


def same_start(side: Side, other: Side) -> list[int]:
    """How many tokens each answer of both begins with in common."""
    return [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=True)))
        for mine, theirs in zip(side.turns[0]["ids"], other.turns[0]["ids"], strict=True)
    ]


def compared(name: str, what: str, key: str, tokens: int, ours: Side, peer: Side, peer_name: str) -> Figure:
    """The median of the rounds' ratios; all answers together have so many tokens."""
    mine, theirs = rates(ours, key, tokens), rates(peer, key, tokens)
    ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
    return Figure(
        name, ratio, "times as fast", what,
        f"{median(mine):.0f} tokens/s", f"{median(theirs):.0f} tokens/s with {peer_name}",
    )  # fmt: skip


def main() -> int:
    """Measure and write `results/decode_speed.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=5).parse_args()
    need(given.peer_python, "transformers")
    has_llama = peer_has(given.peer_python, "llama_cpp")
    before = None if given.smoke else require_quiet_machine(given.threads)
    new_tokens = 8 if given.smoke else NEW_TOKENS
    encoder = workload.open_model().encoder()
    prompts = [encoder.ask(question) for question in CHATS.read_text(encoding="utf-8").splitlines()[:STREAMS]]
    work = workload.setting(given.threads) | {"prompts": prompts, "new_tokens": new_tokens}

    with Side("ours_decode", sys.executable, work) as ours, Side("hf_decode", given.peer_python, work) as hf:
        sides = [ours, hf]
        if has_llama:
            with Side("llama_cpp_decode", given.peer_python, work) as llama:
                sides.append(llama)
                take_turns(sides, given.rounds)
        else:
            say(f"{given.peer_python} lacks llama_cpp: decode_one_vs_llama_cpp is left out")
            take_turns(sides, given.rounds)
    name = f"transformers {hf.ready['versions']['transformers']}"
    one, eight = "greedy decoding, one stream", f"greedy decoding, {STREAMS} streams"
    found = [
        compared("decode_one_vs_transformers", one, "one_seconds", STREAMS * new_tokens, ours, hf, name),
        compared("decode_eight_vs_transformers", eight, "eight_seconds", STREAMS * new_tokens, ours, hf, name),
    ]
    if has_llama:
        name = f"llama-cpp-python {llama.ready['versions']['llama_cpp_python']}"
        found.append(compared("decode_one_vs_llama_cpp", one, "one_seconds", STREAMS * new_tokens, ours, llama, name))
    return finish(
        "decode_speed", given, found, {side.module: [side] for side in sides},
        others_share_before=before, new_tokens=new_tokens, prompt_tokens=[len(prompt) for prompt in prompts],
        same_tokens_at_start={side.module: same_start(ours, side) for side in sides[1:]},
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
