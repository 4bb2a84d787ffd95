"""What single techniques promise beyond the laws that hold for all of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from graftwood.data.batch import pack
from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.technique import TECHNIQUES
from graftwood.techniques.prefix import states_of
from graftwood.train.loss import summed_loss

BATCH = pack(tiny.examples(8))
IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def base() -> Decoder:
    return tiny.decoder()


def logits(decoder: Decoder, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return decoder(ids)


def train(decoder: Decoder, steps: int = 2) -> None:
    optimiser = torch.optim.AdamW(decoder.trained().values(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        summed_loss(decoder, BATCH).backward()
        optimiser.step()


def leaves(decoder: Decoder, owner: int) -> set[str]:
    """The part of each trained parameter's path that is so many steps from its end."""
    return {path.split(".")[owner] for path in decoder.trained()}


LORA = TECHNIQUES.get("lora")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"ranks": 8}, ("no option 'ranks'", "Did you mean 'rank'")),
        ({"rank": 0}, ("rank=0", "greater than or equal to 1")),
        ({"rank": "many"}, ("rank='many'", "integer")),
        ({"alpha": float("inf")}, ("alpha=inf", "finite")),
        ({"dropout": 1.0, "targets": []}, ("dropout=1.0", "targets=[]", "at least 1 item")),
        ({"targets": " , "}, ("targets=()", "at least 1 item")),
        ({"targets": ".*(q_proj"}, ("'.*(q_proj' is no regular expression",)),
        ({"rank_pattern": {"(q": 4}}, ("'(q' is no regular expression",)),
    ],
)
def test_bad_options_of_lora_are_named_together(options: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        LORA.parse(options)
    for part in parts:
        assert part in str(caught.value)


def test_targets_may_be_a_list_or_a_comma_string(base: Decoder) -> None:
    text = LORA.parse({"targets": "q_proj, mlp.up_proj,"})
    assert text.targets == ("q_proj", "mlp.up_proj")
    assert text == LORA.parse({"targets": ["q_proj", "mlp.up_proj"]})
    text.apply(base, seed=0)
    assert leaves(base, -3) == {"q_proj", "up_proj"}
    assert len(base.trained()) == 2 * 2 * base.config.layers


def test_a_target_may_be_a_full_path(base: Decoder) -> None:
    LORA.parse({"targets": ["model.layers.1.self_attn.q_proj"]}).apply(base, seed=0)
    assert {path.rsplit(".", 2)[0] for path in base.trained()} == {"model.layers.1.self_attn.q_proj"}


def test_every_target_that_matches_nothing_is_named_with_its_neighbours(base: Decoder) -> None:
    with pytest.raises(ConfigError) as caught:
        LORA.parse({"targets": "q_proj,k_prj,roj"}).apply(base, seed=0)
    message = str(caught.value)
    assert "'k_prj', 'roj'" in message
    assert "Did you mean 'k_proj'" in message
    assert re.search(r"There are: .*down_proj.*all-linear", message)
    assert base.trained() == {}


def test_a_rank_above_the_size_of_a_matrix_is_an_error(base: Decoder) -> None:
    assert LORA.parse({"rank": 16}).mistakes(base) == []
    (said,) = LORA.parse({"rank": 17}).mistakes(base)
    assert re.search(r"rank 17 is above the size of .*k_proj \[16, 32\] and \d+ more", said)
    LORA.parse({"rank": 17}).apply(base, seed=0)  # as a folder may say
    with pytest.raises(ConfigError, match="rank 17 is above the size of"):
        LORA.parse({"rank": 17, "start": "pissa"}).apply(tiny.decoder(), seed=0)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8.0), (True, 16.0)])
def test_the_scale(rslora: bool, scale: float) -> None:
    assert LORA.parse({"rank": 4, "alpha": 32, "rslora": rslora}).scale == scale


def test_dropout_acts_in_training_alone(base: Decoder) -> None:
    LORA.parse({"dropout": 0.5}).apply(base, seed=0)
    train(base.train())
    assert torch.equal(logits(base.eval()), logits(base.eval()))
    assert not torch.equal(logits(base.train()), logits(base.train()))


def test_a_target_may_be_a_pattern_as_peft_reads_it(base: Decoder) -> None:
    tiny.technique("lora", targets=r"model\.layers\.1\..*(q|v)_proj").apply(base, seed=0)
    assert {path.split(".delta.")[0] for path in base.trained()} == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    }


def test_ranks_and_alphas_by_pattern(base: Decoder) -> None:
    technique = tiny.technique(
        "lora", rank=4, alpha=8, rank_pattern="q_proj=2,layers.1.*down_proj=6", alpha_pattern={"q_proj": 3}
    )
    technique.apply(base, seed=0)
    delta: Any = {path: linear.delta for path, linear in base.linears().items()}
    ranks = {path: len(d.lora_A) for path, d in delta.items()}
    assert ranks["model.layers.0.self_attn.q_proj"] == 2
    assert ranks["model.layers.1.mlp.down_proj"] == 6
    assert ranks["model.layers.0.mlp.down_proj"] == 4
    assert delta["model.layers.0.self_attn.q_proj"].scale == 3 / 2
    assert delta["model.layers.0.self_attn.k_proj"].scale == 2
    (said,) = tiny.technique("lora", rank_pattern={"w_proj": 2}).mistakes(tiny.decoder())
    assert "name no targeted linear with 'w_proj'" in said


def test_pissa_begins_with_the_principal_components_and_as_the_base(base: Decoder) -> None:
    before = logits(base)
    tiny.technique("lora", start="pissa", rank=4).apply(base, seed=0)
    assert torch.allclose(logits(base), before, atol=1e-4)
    for linear in base.linears().values():
        delta: Any = linear.delta
        update = delta.scale * delta.lora_B @ delta.lora_A
        largest = torch.linalg.svdvals(linear.weight)[:4]
        torch.testing.assert_close(torch.linalg.svdvals(update)[:4], largest, rtol=1e-4, atol=1e-4)
    train(base)
    with base.without_deltas():
        assert torch.equal(logits(base), before)


def test_lora_plus_lets_b_learn_faster(base: Decoder) -> None:
    technique = tiny.technique("lora", b_rate=16)
    technique.apply(base, seed=0)
    factors = {path for path in base.trained() if path.endswith("lora_B")}
    assert technique.rates(base) == dict.fromkeys(factors, 16.0)
    assert tiny.technique("lora").rates(base) == {}


def test_doras_lengths_are_those_of_the_whole_matrix(base: Decoder) -> None:
    tiny.technique("dora").apply(base, seed=0)
    train(base)
    for linear in base.linears().values():
        delta: Any = linear.delta
        whole = linear.weight + delta.scale * delta.lora_B @ delta.lora_A
        torch.testing.assert_close(delta.lengths(linear), whole.norm(dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cayley", ["series", "exact"])
def test_oft_turns_and_does_not_stretch(cayley: str, base: Decoder) -> None:
    tiny.technique("oft", cayley=cayley).apply(base, seed=0)
    with torch.no_grad():
        for parameter in base.trained().values():
            parameter.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
    for linear in base.linears().values():
        delta: Any = linear.delta
        rotations = delta.rotations()
        one = torch.eye(rotations.shape[-1]).expand_as(rotations)
        torch.testing.assert_close(rotations @ rotations.mT, one, rtol=0, atol=1e-5 if cayley == "exact" else 1e-3)


def test_shira_moves_the_chosen_entries_alone(base: Decoder) -> None:
    own = {path: linear.weight.clone() for path, linear in base.linears().items()}
    technique = tiny.technique("shira")
    technique.apply(base, seed=0)
    train(base)
    technique.merge(base)
    for path, linear in base.linears().items():
        moved = int((linear.weight != own[path]).sum())
        assert 0 < moved <= 2 * sum(linear.weight.shape)


def test_shira_refuses_more_entries_than_there_are(base: Decoder) -> None:
    with pytest.raises(ConfigError, match=r"rank 16 asks for more entries than .*k_proj \[16, 32\] and \d+ more have"):
        tiny.technique("shira", rank=16).apply(base, seed=0)


PROMPT = torch.randint(0, 320, (1, 6), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_start_from_tokens_acts_as_those_tokens(name: str, base: Decoder) -> None:
    """The vectors of a prompt, and the keys and values of a prefix, are what the tokens themselves would leave."""
    expected = logits(base, torch.cat([PROMPT.expand(2, -1), IDS], dim=1))[:, 6:]
    technique = tiny.technique(name, tokens=6)
    if name == "prompt":
        technique = technique.model_copy(update={"text_ids": tuple(PROMPT[0].tolist())})
        technique.apply(base, seed=0)
    else:
        technique.apply(base, seed=0)
        technique.load(base, {"prompt_embeddings": states_of(base, PROMPT)})
    torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-4)


def test_a_text_is_repeated_to_fill_the_prompt(base: Decoder) -> None:
    technique = tiny.technique("prompt", tokens=5, text="ab").read(lambda text: [ord(letter) for letter in text])
    technique.apply(base, seed=0)
    found = technique.files(base)["prompt_embeddings"]
    assert torch.equal(found, base.embedding.weight[[97, 98, 97, 98, 97]])


@pytest.mark.parametrize("name", ["prompt", "prefix", "ptuning"])
def test_a_prompt_as_long_as_the_context_is_an_error(name: str, base: Decoder) -> None:
    with pytest.raises(ConfigError, match="tokens=128 leaves no room in this model's 128 positions"):
        tiny.technique(name, tokens=128).apply(base, seed=0)
    tiny.technique(name, tokens=100).apply(base, seed=0)
    assert base.context == 28


@pytest.mark.parametrize("options", [{"start": "random"}, {"hidden": 12}], ids=str)
def test_a_prefix_may_start_at_random_and_be_made_by_a_network(options: dict[str, Any], base: Decoder) -> None:
    technique = tiny.technique("prefix", **options)
    technique.apply(base, seed=0)
    train(base)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in base.trained().values())
    after = logits(base)
    technique.load(base, {k: v.clone() for k, v in technique.files(base).items()})
    torch.testing.assert_close(logits(base), after, rtol=1e-5, atol=1e-5)
    assert len(base.trained()) == 1, "what is loaded is the prefix itself"


@pytest.mark.parametrize("kind", ["double_seq_bn", "seq_bn", "par_bn"])
def test_adapters_compute_their_formula(kind: str, base: Decoder) -> None:
    technique = tiny.technique("adapter", kind=kind)
    technique.apply(base, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.trained().values():
            parameter.normal_(0.0, 0.2, generator=generator)
    files = technique.files(base)
    act = F.silu if kind == "double_seq_bn" else F.relu

    def adapted(x: Tensor, place: str) -> Tensor:
        part = {k.removeprefix(f"{place}.adapters.default."): v for k, v in files.items() if k.startswith(place)}
        inner = act(F.linear(x, part["adapter_down.0.weight"], part["adapter_down.0.bias"]))
        return F.linear(inner, part["adapter_up.weight"], part["adapter_up.bias"])

    plain = tiny.decoder()
    x = plain.embedding(IDS)
    scope = plain._scope(x, None, None)
    with torch.no_grad():
        for number, block in enumerate(plain.blocks):
            path, b = f"model.layers.{number}", block
            attended: Any = b.self_attn(b.input_layernorm(x), scope)
            if kind == "double_seq_bn":
                attended = attended + adapted(attended, f"{path}.attention_adapters")
            x = x + attended
            y: Any = b.mlp(b.post_attention_layernorm(x))
            if kind == "double_seq_bn":
                x = x + y + adapted(y, f"{path}.output_adapters")
            elif kind == "seq_bn":
                x = x + y + adapted(x + y, f"{path}.output_adapters")
            else:
                x = x + y + 4.0 * adapted(x, f"{path}.output_adapters")
        expected = plain.logits(plain.model.norm(x))
    torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-4)


def blocks_of(names: Any) -> set[int]:
    return {int(path.split(".")[2]) for path in names if path.startswith("model.layers.")}


def test_freeze_trains_the_top(base: Decoder) -> None:
    tiny.technique("freeze").apply(base, seed=0)
    assert blocks_of(base.trained()) == {1}
    assert "model.norm.weight" in base.trained()
    assert "model.embed_tokens.weight" not in base.trained(), "a head that is the embedding stays"


def test_freeze_may_train_the_head_alone_or_all_or_parameters_by_name() -> None:
    def trained(**options: Any) -> set[str]:
        decoder = tiny.decoder()
        tiny.technique("freeze", **options).apply(decoder, seed=0)
        return set(decoder.trained())

    everything = {path for path, _ in tiny.decoder().named_parameters()}
    assert trained(top=0) == {"model.norm.weight", "model.embed_tokens.weight"}
    assert trained(top=2) == everything
    assert trained(targets="q_proj") == {path for path in everything if ".q_proj." in path}
    assert trained(targets=r".*layers\.0\..*norm\.weight") == {p for p in everything if ".0." in p and "norm" in p}


def test_an_untied_head_trains_with_the_top() -> None:
    decoder = tiny.decoder(tied_head=False)
    tiny.technique("freeze", top=1).apply(decoder, seed=0)
    assert "lm_head.weight" in decoder.trained()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"top": 3}, "top=3 is above this model's 2 blocks"),
        ({"top": 1, "targets": "q_proj"}, "give one of them"),
        ({"targets": "q_prj"}, "no parameter of llama is called 'q_prj'. Did you mean 'q_proj'"),
    ],
)
def test_what_freeze_refuses(options: dict[str, Any], part: str, base: Decoder) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)):
        tiny.technique("freeze", **options).apply(base, seed=0)


def test_gradual_unfreezing_opens_from_the_top(base: Decoder) -> None:
    technique = tiny.technique("freeze", top=2, order="gradual", share=0.8)
    technique.apply(base, seed=0)
    opened = [technique.stage(base, progress) for progress in (0.0, 0.25, 0.45, 0.65, 0.8)]
    assert opened[0] == {"model.norm.weight"}
    assert [blocks_of(names) for names in opened[:4] if names is not None] == [set(), {1}, {0, 1}, {0, 1}]
    assert opened[3] is not None
    assert "model.embed_tokens.weight" in opened[3]
    assert opened[4] is None


@pytest.mark.parametrize(("tied", "head"), [(True, "model.embed_tokens.weight"), (False, "lm_head.weight")])
def test_the_head_first_then_all(tied: bool, head: str) -> None:
    decoder = tiny.decoder(tied_head=tied)
    technique = tiny.technique("freeze", top=2, order="head-first", share=0.5)
    assert technique.mistakes(decoder) == []
    technique.apply(decoder, seed=0)
    assert technique.stage(decoder, 0.49) == {"model.norm.weight", head}
    assert technique.stage(decoder, 0.5) is None


def test_a_head_that_does_not_train_cannot_be_first(base: Decoder) -> None:
    (said,) = tiny.technique("freeze", top=1, order="head-first").mistakes(base)
    assert said == "order=head-first begins with the head, model.embed_tokens, which trains with top=0 or top=2"
    (said,) = tiny.technique("freeze", targets="q_proj", order="head-first").mistakes(base)
    assert said.endswith("model.embed_tokens, which is not among what trains")
    assert tiny.technique("freeze", top=1, order="head-first").mistakes(tiny.decoder(tied_head=False)) == []


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("prompt", {"start": "random", "text": "x"}, "text is a start of its own, and start=random another"),
        ("prefix", {"start": "vocabulary", "hidden": 8}, "start=vocabulary is of a prefix without a network"),
        ("oft", {"cayley": "exact", "terms": 9}, "terms are of cayley=series, and this is cayley=exact"),
        ("freeze", {"share": 0.5}, "share is of order=head-first and order=gradual"),
    ],
)
def test_options_that_contradict_each_other_are_said(
    name: str, options: dict[str, Any], part: str, base: Decoder
) -> None:
    (said,) = tiny.technique(name, **options).mistakes(base)
    assert said.startswith(part)
    for alone in options:
        left = {key: value for key, value in options.items() if key != alone}
        assert name == "freeze" or tiny.technique(name, **left).mistakes(base) == []
    tiny.technique(name, **options).apply(base, seed=0)  # as a folder may say


def test_a_text_longer_than_its_prompt_is_an_error(base: Decoder) -> None:
    technique = tiny.technique("prompt", tokens=2, text="abc").read(lambda text: [ord(letter) for letter in text])
    with pytest.raises(ConfigError, match="text is 3 tokens and the prompt 2; shorten it or give tokens=3"):
        technique.apply(base, seed=0)


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("begun", ["at the base", "elsewhere"])
def test_the_dials_ends_are_exact_wherever_it_began(name: str, begun: str, base: Decoder) -> None:
    technique = tiny.technique(name)
    technique.apply(base, seed=0)
    if begun == "elsewhere":
        train(base)
    start, at_start = {path: p.detach().clone() for path, p in base.trained().items()}, logits(base)
    train(base)
    end, at_end = {path: p.detach().clone() for path, p in base.trained().items()}, logits(base)
    technique.dial(base, start, end, 1.0)
    assert torch.equal(logits(base), at_end)
    technique.dial(base, start, end, 0.0)
    assert torch.equal(logits(base), at_start)
    assert not torch.equal(at_start, at_end)


def test_rates_fall_from_block_to_block(base: Decoder) -> None:
    technique = tiny.technique("freeze", top=2, decay=0.5)
    technique.apply(base, seed=0)
    rates = technique.rates(base)
    assert "model.norm.weight" not in rates
    assert rates["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert rates["model.layers.0.mlp.up_proj.weight"] == 0.25
    assert rates["model.embed_tokens.weight"] == 0.125


def test_biases_that_the_base_has_are_trained_and_merged() -> None:
    decoder = tiny.decoder(attention_bias=True, feed_forward_bias=True)
    technique = tiny.technique("bitfit")
    technique.apply(decoder, seed=0)
    assert all(path.endswith(".bias") for path in decoder.trained())
    train(decoder)
    after = logits(decoder)
    technique.merge(decoder)
    assert torch.equal(logits(decoder), after)
    assert decoder.trained() == {}


def test_ia3_scales_keys_values_and_what_the_last_linear_reads(base: Decoder) -> None:
    tiny.technique("ia3").apply(base, seed=0)
    shapes = {path.split(".")[-3]: list(p.shape) for path, p in base.trained().items()}
    assert shapes == {"k_proj": [16, 1], "v_proj": [16, 1], "down_proj": [1, 48]}


def test_ia3_scales_a_bias_with_its_output() -> None:
    decoder = tiny.decoder(attention_bias=True, feed_forward_bias=True)
    technique = tiny.technique("ia3", targets="all-linear")
    technique.apply(decoder, seed=0)
    train(decoder)
    after = logits(decoder)
    technique.merge(decoder)
    torch.testing.assert_close(logits(decoder), after, rtol=1e-4, atol=1e-4)


def test_every_technique_says_what_it_is() -> None:
    for name, kind in TECHNIQUES.all().items():
        assert kind.name == name
        for said in (kind.title, kind.source, kind.learning_rate_reason, kind.trains, kind.cost):
            assert said
        assert math.isfinite(kind.learning_rate)
