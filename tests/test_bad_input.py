"""Everything that may come in wrong, and the tests that say what then happens: a list in the order in which a run meets
it.

The tests themselves stand where their subject is tested; this file holds that each of them is there. What a user did
wrong ends a command with exit code 2 and one message (place, value, what would be right); what a model or a tool did
wrong is data; what the world did wrong is asked again. See "What always holds" in ARCHITECTURE.md.
"""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent

LIST: dict[str, tuple[str, ...]] = {
    # --- recipes
    "an unknown key, a wrong type, an impossible combination: file, line, key, value, nearest key": (
        "test_recipe.py::test_a_mistake_names_file_line_key_and_what_is_right",
        "test_recipe.py::test_several_mistakes_are_told_at_once",
        "test_recipe.py::test_a_mistake_on_the_command_line_says_so",
        "test_recipe.py::test_a_conflict_is_shown_where_it_was_made",
        "test_recipe_mutants.py::test_a_misspelt_key_of_any_group_is_told_with_the_right_one",
    ),
    "any recipe at all: a run that prints and reads back equal, or a ConfigError": (
        "test_recipe_fuzz.py::test_any_value_at_any_key",
        "test_recipe_fuzz.py::test_any_text_on_the_command_line",
        "test_recipe_fuzz.py::test_any_text_as_a_file",
        "test_recipe_fuzz.py::test_any_bytes_as_a_file",
        "test_recipe_mutants.py::test_recipes_with_keys_lost_misspelt_moved_and_retyped",
        "test_recipe_mutants.py::test_whole_recipes_with_one_extreme_value",
        "test_recipe_mutants.py::test_recipes_with_a_strange_line_in_them",
        "test_recipe_mutants.py::test_recipes_with_damaged_bytes",
        "test_recipe_mutants.py::test_any_overrides",
    ),
    "any arguments of any command": (
        "cli/test_cli_mistakes.py::test_a_mistake_says_what_is_wrong",
        "cli/test_cli_mistakes.py::test_any_wrong_arguments",
        "cli/test_commands.py::test_mistakes_are_one_message_and_leave_nothing",
    ),
    # --- data
    "data that is missing, a folder, empty, binary, cut, of another encoding, broken in line N": (
        "tasks/test_task_sources.py::test_wrong_sources_are_named",
        "tasks/test_task_sources.py::test_files_that_are_not_what_their_names_say",
        "tasks/test_task_sources.py::test_a_byte_that_is_no_utf8_is_named",
        "tasks/test_broken_files.py::test_a_folder_in_place_of_a_file",
        "tasks/test_broken_files.py::test_another_encoding_is_named_or_at_least_its_first_byte",
        "tasks/test_broken_files.py::test_an_empty_file_says_so",
        "tasks/test_broken_files.py::test_json_that_python_stumbles_over_is_named_by_its_line",
        "tasks/test_broken_files.py::test_parquet_cut_at_any_byte_is_named",
        "tasks/test_broken_files.py::test_a_damaged_file_gives_tasks_or_says_why",
        "tasks/test_broken_files.py::test_any_bytes_give_tasks_or_say_why",
        "assembly/test_components.py::test_tasks_that_cannot_be_read_are_named_by_split_and_key",
    ),
    "a recipe, data, traces, a tool, a model, a run folder or a cache that this user may not read or write": (
        "runs/test_unreadable.py::test_what_may_not_be_read_is_named_before_a_run_begins",
        "runs/test_unreadable.py::test_a_run_folder_that_may_not_be_written",
        "runs/test_unreadable.py::test_a_cache_that_may_not_be_written_is_told_before_the_cold_start_is_made",
    ),
    "a row without answer, or of another shape": (
        "tasks/test_task_sources.py::test_wrong_rows_are_named",
        "tasks/test_task_sources.py::test_blank_rows_are_skipped_and_reported",
        "tasks/test_task_sources.py::test_whatever_a_row_holds_is_a_task_or_a_format_error",
        "tasks/test_broken_files.py::test_what_a_function_does_wrong_is_named",
        "tasks/test_traces.py::test_whatever_stands_there_is_a_trace_or_a_format_error",
    ),
    # --- models
    "a model that is not there: no folder, no network, half a folder, damaged weights, no tokenizer": (
        "models/test_sources.py::test_sources_that_mean_nothing",
        "models/test_sources.py::test_what_a_folder_lacks_is_named",
        "models/test_sources.py::test_weights_that_are_cut_short_are_found",
        "models/test_sources.py::test_no_such_package_or_no_network",
        "models/test_unusable_models.py::test_files_that_hold_something_else",
        "models/test_unusable_models.py::test_a_config_that_does_not_fit_its_weights",
        "models/test_unusable_models.py::test_weights_with_a_wrong_header",
        "models/test_unusable_models.py::test_parameters_that_the_weights_lack_are_no_random_numbers",
    ),
    "a model without chat template, or with one that fails": (
        "chat/test_template.py::test_a_model_without_template_says_what_to_do",
        "chat/test_tags.py::test_a_model_without_template_still_gets_a_prompt",
        "models/test_unusable_models.py::test_chat_templates_that_cannot_write_a_conversation",
    ),
    "a model of an attention that is not supported: windows, recurrent layers, caps": (
        "models/test_unusable_models.py::test_attention_that_the_engine_does_not_know",
        "engines/test_local_engine.py::test_models_that_cannot_be_sampled_say_why",
        "learner/test_attention.py::test_models_that_can_and_cannot",
        "learner/test_attention.py::test_a_model_that_cannot_is_refused",
    ),
    # --- tools
    "a tool that cannot be imported or set up: the run does not start": (
        "tools/test_tool_config.py::test_defect_8_a_tool_that_fails_to_load_stops_the_run",
        "tools/test_tool_config.py::test_defect_8_a_tool_that_raises_while_it_is_set_up_is_named",
        "training/test_pipeline.py::test_a_start_that_fails_leaves_the_folder_free",
    ),
    "a tool that raises": (
        "tools/test_call_boundary.py::test_exceptions_are_errors_that_the_model_can_read",
        "tools/test_tools_that_misbehave.py::test_whatever_a_function_raises_is_an_error_of_the_call",
    ),
    "a tool that hangs, blocks the event loop or ignores being cancelled": (
        "tools/test_call_boundary.py::test_defect_7_the_deadline_fires_for_a_hanging_sync_tool_and_the_run_can_end",
        "tools/test_call_boundary.py::test_defect_7_the_deadline_fires_for_a_tool_that_ignores_cancellation",
        "tools/test_tools_that_misbehave.py::test_an_asynchronous_function_that_blocks_holds_up_nobody",
        "tools/test_tools_that_misbehave.py::test_a_tool_whose_loop_is_blocked_is_called_on_another_and_the_blocked_one_ends",
    ),
    "a tool that returns 10 MB": (
        "tools/test_call_boundary.py::test_huge_and_broken_outputs_are_tamed",
        "tools/test_tools_that_misbehave.py::test_ten_megabytes_of_bytes_are_cut_too",
        "chat/test_tags.py::test_ten_megabytes_are_cut_before_they_are_tokenised",
    ),
    "a tool that returns protocol tags or special tokens": (
        "chat/test_tags.py::test_defect_9_tool_text_cannot_act",
        "chat/test_tags.py::test_defect_9_no_mixture_of_pieces_acts",
        "chat/test_template.py::test_defect_9_results_cannot_act",
    ),
    "a tool that returns nothing, bytes, half a character": (
        "tools/test_tools_that_misbehave.py::test_whatever_a_function_returns_is_text",
        "tools/test_call_boundary.py::test_defect_7_an_empty_output_is_a_result_and_runs_once",
    ),
    # --- what the model writes
    "malformed, nested and unknown calls": (
        "chat/test_tags.py::test_malformed_calls_come_back_with_what_would_be_right",
        "chat/test_tags.py::test_a_call_in_a_broken_turn_runs_but_is_not_well_formed",
        "chat/test_tags.py::test_parse_never_raises_and_its_text_is_the_turns",
        "chat/test_template.py::test_malformed_calls_come_back_as_such",
        "chat/test_template.py::test_nested_unknown_and_malformed_calls_have_outcomes_that_say_why",
        "tools/test_call_boundary.py::test_what_never_ran_is_refused_and_says_why",
        "rollout/test_rollout_limits.py::test_refused_and_malformed_calls_count_too",
    ),
    # --- rewards
    "a reward that raises, or gives no finite number": (
        "rewards/test_paper_reward.py::test_what_a_reward_does_wrong_names_task_and_reward",
        "rewards/test_paper_reward.py::test_what_is_no_finite_number_ends_the_run_by_name",
        "rewards/test_paper_reward.py::test_a_reward_has_no_say_over_the_process",
        "rollout/test_rollout_failures.py::test_a_reward_that_fails_is_a_reward_error_and_cancels_the_others",
        "training/test_pipeline.py::test_a_failure_is_written_down_and_not_cached",
    ),
    "a step whose rewards are all equal: counted, skipped, reported": (
        "training/test_loop.py::test_a_step_that_can_teach_nothing_is_counted_and_said",
        "training/test_loop.py::test_dynamic_sampling_is_bounded",
    ),
    # --- limits
    "a prompt longer than the context": (
        "models/test_unusable_models.py::test_prompts_without_room_are_found_before_anything_is_computed",
        "models/test_unusable_models.py::test_branches_that_could_outgrow_the_engine",
        "rollout/test_rollout_limits.py::test_a_prompt_longer_than_the_branch_is_the_users_mistake",
    ),
    "a tree that exhausts its tokens": (
        "rollout/test_rollout_limits.py::test_a_turn_that_fills_the_branch_calls_nobody",
        "rollout/test_rollout_limits.py::test_a_result_that_fills_the_branch_makes_its_turn_the_leaf",
        "rollout/test_rollout_limits.py::test_no_limit_is_ever_passed_and_all_that_is_trained_on_was_sampled",
    ),
    # --- what was written before
    "a checkpoint that is truncated: the one before is used, and it says so": (
        "runs/test_checkpoint.py::test_a_checkpoint_cut_anywhere_is_passed_over_and_named",
        "runs/test_checkpoint.py::test_a_damaged_checkpoint_is_passed_over_and_named",
        "runs/test_checkpoint.py::test_a_flipped_bit_in_any_file_is_found",
        "runs/test_checkpoint.py::test_weights_that_are_not_finite_are_passed_over",
        "runs/test_checkpoint.py::test_what_came_after_skipped_updates_is_only_used_where_there_is_nothing_else",
        "training/test_pipeline.py::test_a_truncated_checkpoint_is_passed_over_and_its_step_done_again",
    ),
    "a record of an older or newer schema, or a damaged one": (
        "core/test_record_versions.py::test_a_stored_record_is_read_and_replays",
        "core/test_record_versions.py::test_another_schema_is_refused_with_both_versions",
        "core/test_record.py::test_an_unknown_schema_names_both_versions",
        "core/test_record_damage.py::test_a_schema_that_this_version_does_not_read_is_named",
        "core/test_record_damage.py::test_cut_anywhere_the_whole_frames_are_read",
        "core/test_record_damage.py::test_a_flipped_bit_costs_the_frame_it_is_in_and_those_behind",
        "core/test_record_damage.py::test_random_bytes_are_no_record",
        "core/test_record_damage.py::test_a_damaged_length_costs_no_memory",
        "core/test_record_damage.py::test_any_value_anywhere_is_a_record_or_a_format_error",
        "cli/test_commands.py::test_commands_that_read_trees_name_file_and_byte_of_a_damaged_frame",
    ),
}


@pytest.mark.parametrize("wrong", LIST)
def test_it_is_tested(wrong: str) -> None:
    for named in LIST[wrong]:
        file, _, name = named.partition("::")
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        assert any(
            isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == name for part in tree.body
        ), named
