//! Siblings: each model has a stress test on the real types, with a real clock and a real scheduler.
//! A model says nothing about what its doubles get wrong, and a stress test nothing about the orders
//! that it does not meet.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Models, and the tests that do the same on what ships: module and name, from the engine's `src`.
#[rustfmt::skip]
const SIBLINGS: &[(&str, &str)] = &[
    ("completion::value_is_handed_over", "sync/tests::completions_hand_values_over"),
    ("completion::value_is_polled", "sync/tests::a_completion_can_be_polled"),
    ("completion::promise_is_abandoned", "sync/tests::completions_hand_values_over"),
    ("completion::receiver_leaves", "sync/tests::a_value_is_dropped_once_whoever_goes_first"),
    ("completion::last_to_leave_has_the_cell", "sync/tests::cells_of_completions_serve_again"),
    ("completion::last_to_leave_drops_the_unread", "sync/tests::cells_of_completions_serve_again"),
    ("completion::abandoned_cell_is_not_lost", "sync/tests::cells_of_completions_serve_again"),
    ("event_count::one_waiter", "sync/tests::no_wake_up_is_lost_in_ping_pong"),
    ("event_count::one_waiter_with_a_deadline", "sync/tests::a_wait_with_a_deadline_ends"),
    ("event_count::two_waiters_two_publishes", "sync/tests::a_watermark_carries_what_lies_below_it"),
    ("failure::refused_submit_finds_the_cause", "pipeline/permits_tests::whoever_is_denied_finds_the_reason"),
    ("failure::blocked_submit_finds_the_cause", "pipeline/permits_tests::whoever_is_denied_finds_the_reason"),
    ("failure::reader_finds_the_cause", "sync/tests::another_thread_may_fail_a_watermark"),
    ("gate::append_against_close", "pipeline/gate_tests::what_passes_before_the_close_is_received_and_nothing_else"),
    ("gate::append_against_close_and_receiver", "pipeline/gate_tests::what_passes_before_the_close_is_received_and_nothing_else"),
    ("gate::two_appends_against_close", "pipeline/gate_tests::what_passes_before_the_close_is_received_and_nothing_else"),
    ("gate::append_against_seal", "pipeline/gate_tests::no_append_is_behind_a_seal"),
    ("gate::append_after_failed_seal", "pipeline/gate_tests::a_stream_is_shut_while_it_is_sealed_or_being_sealed"),
    ("gate::settled_gate_refuses", "pipeline/gate_tests::before_the_order_has_caught_up_only_new_seals_shut_a_stream"),
    ("gate::unseal_against_append", "pipeline/gate_tests::a_stream_is_shut_while_it_is_sealed_or_being_sealed"),
    ("group_commit::published_is_safe", "pipeline/group_commit_tests::what_is_acknowledged_is_safe"),
    ("group_commit::two_appenders_commit", "pipeline/group_commit_tests::what_is_acknowledged_is_safe"),
    ("group_commit::published_is_handed_over", "pipeline/group_commit_tests::what_is_acknowledged_is_safe"),
    ("group_commit::write_fails", "pipeline/group_commit_tests::a_failure_answers_everything_and_acknowledges_nothing_more"),
    ("group_commit::sync_fails", "pipeline/group_commit_tests::a_failure_answers_everything_and_acknowledges_nothing_more"),
    ("group_commit::write_panics", "pipeline/group_commit_tests::a_failure_answers_everything_and_acknowledges_nothing_more"),
    ("group_commit::publication_panics", "pipeline/group_commit_tests::a_failure_answers_everything_and_acknowledges_nothing_more"),
    ("group_commit::answer_panics", "pipeline/group_commit_tests::a_failure_answers_everything_and_acknowledges_nothing_more"),
    ("interests::subscription_against_a_window", "pipeline/interests::whoever_comes_while_others_publish_misses_nothing"),
    ("interests::subscription_against_the_end", "pipeline/interests::whoever_comes_while_others_publish_misses_nothing"),
    ("interests::subscription_passes_over_what_is_of_others", "pipeline/interests::whoever_passes_over_others_misses_nothing"),
    ("known::insert_against_a_reader", "order/known_tests::readers_find_all_that_was_there_while_the_table_grows"),
    ("known::insert_beside_another_key", "order/known_tests::readers_find_all_that_was_there_while_the_table_grows"),
    ("known::growth_against_a_reader", "order/known_tests::readers_find_all_that_was_there_while_the_table_grows"),
    ("known::set_against_a_reader", "order/known_tests::a_value_goes_forward_and_hands_over_what_was_done_before"),
    ("known::set_and_growth_against_a_reader", "order/known_tests::a_value_goes_forward_and_hands_over_what_was_done_before"),
    ("permits::two_takers_in_turn", "pipeline/permits_tests::takers_never_hold_more_than_there_is"),
    ("permits::blocked_taker_goes_on", "pipeline/permits_tests::a_permit_given_back_lets_the_next_in"),
    ("permits::two_blocked_takers_go_on", "pipeline/permits_tests::a_permit_given_back_lets_the_next_in"),
    ("permits::close_releases_the_blocked", "pipeline/permits_tests::a_close_releases_all_who_wait_and_refuses_all_who_come"),
    ("permits::close_releases_all_the_blocked", "pipeline/permits_tests::a_close_releases_all_who_wait_and_refuses_all_who_come"),
    ("permits::nothing_is_taken_after_the_close", "pipeline/permits_tests::nothing_is_taken_once_the_close_is_known"),
    ("permits::too_large_goes_alone", "pipeline/permits_tests::a_request_larger_than_the_budget_goes_alone"),
    ("permits::idle_shows_what_was_done", "pipeline/permits_tests::an_idle_budget_shows_what_was_done_under_it"),
    ("permits::denied_shows_the_reason", "pipeline/permits_tests::whoever_is_denied_finds_the_reason"),
    ("permits::settled_shows_the_answer", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("permits::room_before_the_answer", "pipeline/room_tests::whoever_has_an_outcome_finds_room"),
    ("permits::closed_elsewhere", "pipeline/room_tests::closing_a_lane_ends_its_waits_for_the_queue"),
    ("permits::impatient_takers", "pipeline/permits_tests::whoever_is_denied_finds_the_reason"),
    ("pipeline::close_against_an_appender", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("pipeline::close_after_an_append", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("pipeline::close_against_two_appenders", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("pipeline::lane_closes_for_an_appender_that_waits", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("queue::message_wakes_the_receiver", "sync/tests::a_receiver_sleeps_until_there_is_something"),
    ("queue::end_wakes_the_receiver", "sync/tests::a_receiver_sleeps_until_there_is_something"),
    ("queue::everything_comes_before_the_end", "sync/tests::a_queue_loses_nothing_and_ends"),
    ("queue::two_senders_end", "sync/tests::a_queue_loses_nothing_and_ends"),
    ("queue::receiver_goes", "sync/tests::a_receiver_sleeps_until_there_is_something"),
    ("reader_biased::one_reader_one_writer", "sync/tests::readers_see_whole_writes"),
    ("reader_biased::two_readers_one_writer", "sync/tests::readers_see_whole_writes"),
    ("reader_biased::two_readers_share_a_slot", "sync/tests::a_writer_waits_for_every_kind_of_reader"),
    ("reader_biased::bias_is_revoked_and_restored", "sync/tests::readers_see_whole_writes"),
    ("reader_biased::slow_reader_restores_bias_for_fast_reader", "sync/tests::readers_see_whole_writes"),
    ("reader_biased::two_writers_one_reader", "sync/tests::writers_exclude_each_other"),
    ("room::close_waits_for_the_last_callback", "pipeline/room_tests::a_close_waits_for_the_last_callback"),
    ("room::callback_closes_a_pipeline_of_one", "pipeline/room_tests::a_callback_may_close_its_lane_and_submit_to_it"),
    ("room::callback_closes_a_pipeline_of_two", "pipeline/room_tests::a_callback_may_close_its_lane_and_submit_to_it"),
    ("room::callback_finds_the_pipeline_full", "pipeline/room_tests::a_callback_may_close_its_lane_and_submit_to_it"),
    ("room::full_lane_keeps_nobody_out", "pipeline/room_tests::a_full_lane_keeps_nobody_out"),
    ("room::full_queue_costs_no_permit", "pipeline/room_tests::a_full_queue_costs_no_permit"),
    ("room::close_ends_a_wait_for_the_queue", "pipeline/room_tests::closing_a_lane_ends_its_waits_for_the_queue"),
    ("room::ticket_has_its_outcome_after_the_close", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("room::ticket_makes_room_for_a_waiter", "pipeline/room_tests::every_accepted_request_is_answered_once_and_before_its_lane_is_closed"),
    ("room::ticket_has_made_room", "pipeline/room_tests::whoever_has_an_outcome_finds_room"),
    ("segments::roll_against_a_poller", "sync/tests::what_a_watermark_counts_is_in_the_list_that_grew_before"),
    ("segments::roll_against_a_waiter", "sync/tests::what_a_watermark_counts_is_in_the_list_that_grew_before"),
    ("segments::retirement_against_a_reader", "sync/tests::what_is_taken_out_of_a_list_lives_while_it_is_read"),
    ("segments::retirement_against_growth", "sync/tests::what_is_taken_out_of_a_list_lives_while_it_is_read"),
    ("watermark::carries_data_to_a_waiter", "sync/tests::a_watermark_carries_what_lies_below_it"),
    ("watermark::carries_data_to_a_poller", "sync/tests::a_watermark_carries_what_lies_below_it"),
    ("watermark::waiters_before_and_after_failure", "sync/tests::a_failed_watermark_still_answers_for_what_it_reached"),
    ("watermark::failure_shows_progress", "sync/tests::another_thread_may_fail_a_watermark"),
    ("watermark::another_thread_fails_after_progress", "sync/tests::another_thread_may_fail_a_watermark"),
];

/// The tests of a file, by their names.
fn tests_in(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let tests = text.split("#[test]\n").skip(1);
    let name = |test: &str| Some(test.split_once("fn ")?.1.split_once('(')?.0.to_owned());
    tests.filter_map(name).collect()
}

#[test]
fn every_model_has_a_sibling() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let mut written = BTreeSet::new();
    for file in fs::read_dir(&models).unwrap().map(|entry| entry.unwrap().path()) {
        let module = file.file_stem().unwrap().to_str().unwrap();
        if !["main", "mutants", "siblings"].contains(&module) {
            written.extend(tests_in(&file).iter().map(|test| format!("{module}::{test}")));
        }
    }
    let listed: BTreeSet<_> = SIBLINGS.iter().map(|(model, _)| (*model).to_owned()).collect();
    assert_eq!(listed.len(), SIBLINGS.len(), "a model is listed twice");
    assert_eq!(listed, written);
}

#[test]
fn every_sibling_is_there() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src");
    for (model, sibling) in SIBLINGS {
        let (file, test) = sibling.split_once("::").unwrap();
        let tests = tests_in(&engine.join(format!("{file}.rs")));
        assert!(tests.iter().any(|it| it == test), "{model}: there is no {sibling}");
    }
}
