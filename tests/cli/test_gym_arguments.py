"""NeMo Gym's way to give options, told from overrides of the config."""

from __future__ import annotations

import click
import pytest

from openai_gateway.cli.gym_arguments import take_gym_options


def test_gyms_options_are_ours_and_the_rest_are_overrides() -> None:
    override = "++policy_model.responses_api_models.openai_model.max_retries=3"
    options, rest = take_gym_options(
        [
            "+input_jsonl_fpath=a b.jsonl",
            "++output_jsonl_fpath=o.jsonl",
            "+limit=null",
            "+num_repeats=4",
            "+num_samples_in_parallel=10",
            "+resume_from_cache=true",
            override,
            "+config_paths=[a.yaml]",
        ]
    )
    assert options == {"source": "a b.jsonl", "output": "o.jsonl", "num_repeats": 4, "concurrency": 10, "resume": True}
    assert rest == [override, "+config_paths=[a.yaml]"]


def test_command_lines_of_gyms_documents_are_taken_as_they_are() -> None:
    options, rest = take_gym_options(
        [
            "+agent_name=simple_agent",
            "+concurrency=10",
            "+num_repeats_add_seed=true",
            "+dry_run=true",
            "++responses_create_params={temperature: 0.0, reasoning: {effort: low}}",
            "+responses_create_params.max_output_tokens=512",
            "++policy_model_name=gpt-4o-mini",
        ]
    )
    params = {"temperature": 0.0, "reasoning": {"effort": "low"}, "max_output_tokens": 512}
    assert options == {"agent": "simple_agent", "concurrency": 10, "seeds": True, "dry_run": True, "params": params}
    assert rest == ["++policy_model_name=gpt-4o-mini"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("prompts.jsonl", "what is"),
        ("+++limit=1", "what is"),
        ("+limit=0", "whole number from 1"),
        ("+num_repeats=true", "whole number from 1"),
        ("+num_repeats=100001", "from 1 to 100000"),
        ("+limit=99999999999999999999", "from 1 to"),
        ("+num_repeats={agent: 2}", "whole number from 1"),
        ("+limit=[", "can't be read"),
        ("+resume_from_cache=3", "true or false"),
        ("+skills.path=x", "no agent is run here"),
        ("+num_repeat=4", r"did you mean \+num_repeats"),
        ("+input_jsonl_path=x", r"did you mean \+input_jsonl_fpath"),
        ("+num_repeats_add_seed=3", "true or false"),
        ("+responses_create_params=3", "must be a mapping"),
        ("+responses_create_params.reasoning.effort=low", "is nested"),
    ],
)
def test_what_can_not_be_done_is_refused_not_ignored(argument: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        take_gym_options([argument])
