//! Mutants: each named ordering and step of the shipped files, weakened, left out or taken too
//! late, must make a stated model fail in the stated way. A model that passes with a broken protocol sees nothing.
//!
//! Each mutant runs in a process of its own, since a deadlock found by loom may abort the
//! process, and since the name is read once per process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How a model fails, as loom or the standard library puts it.
#[derive(Clone, Copy)]
enum Report {
    /// Two accesses to a cell that nothing orders.
    Race,
    /// Every thread waits: a wake-up was lost.
    Deadlock,
    /// An assertion or expectation of the model or of the shipped code.
    Assertion,
}

impl Report {
    fn text(self) -> &'static str {
        match self {
            Self::Race => "Causality violation",
            Self::Deadlock => "deadlock; threads",
            Self::Assertion => "panicked at loom-tests/",
        }
    }
}

/// Mutants that no execution can tell from the original, with the reason.
///
/// There are none at present. An ordering that is redundant today, but would not be if a fence nearby became a lighter barrier,
/// belongs here; one that is plainly redundant is `Relaxed`.
const EQUIVALENT: &[(&str, &str)] = &[];

macro_rules! mutants {
    ($($test:ident: $mutant:literal fails $model:literal with $report:ident;)*) => {
        const KILLED: &[&str] = &[$($mutant),*];
        $(
            #[test]
            fn $test() {
                assert_killed($mutant, $model, Report::$report);
            }
        )*
    };
}

mutants! {
    // The reader misses the revocation and the writer misses the slot: both are inside.
    bravo_reader_fence: "bravo.reader_fence" fails "reader_biased::one_reader_one_writer" with Race;
    bravo_writer_fence: "bravo.writer_fence" fails "reader_biased::one_reader_one_writer" with Race;
    // The reader enters after the revocation.
    bravo_recheck: "bravo.recheck" fails "reader_biased::one_reader_one_writer" with Race;
    // The writer does not wait for a reader that it sees.
    bravo_drain: "bravo.drain" fails "reader_biased::one_reader_one_writer" with Race;
    // The writer enters without an edge from the reader's last access.
    bravo_drain_acquire:
        "bravo.drain_acquire" fails "reader_biased::one_reader_one_writer" with Race;
    bravo_unlock_release:
        "bravo.unlock_release" fails "reader_biased::one_reader_one_writer" with Race;
    // After the bias is restored, a fast reader reads the last writer's data with no edge to it.
    bravo_bias_release:
        "bravo.bias_release" fails "reader_biased::slow_reader_restores_bias_for_fast_reader"
        with Race;
    // The same for a reader that took its slot on the strength of the bias before. (If it went by
    // the restored bias from the start, its fence has acquired that already.)
    bravo_bias_acquire:
        "bravo.bias_acquire" fails "reader_biased::two_readers_one_writer" with Race;

    // The waiter sees the old state, the notifier sees no waiter.
    ec_waiter_fence: "ec.waiter_fence" fails "event_count::one_waiter" with Deadlock;
    ec_notifier_fence: "ec.notifier_fence" fails "event_count::one_waiter" with Deadlock;
    // The state changes between the first look and the sleep.
    ec_recheck: "ec.recheck" fails "event_count::one_waiter" with Deadlock;
    // The notification falls between the last look and the sleep.
    ec_notify_lock: "ec.notify_lock" fails "event_count::one_waiter" with Deadlock;

    // A reader of the watermark sees the number and not what lies below it.
    wm_release: "wm.release" fails "watermark::carries_data_to_a_poller" with Race;
    wm_acquire: "wm.acquire" fails "watermark::carries_data_to_a_poller" with Race;
    // Waiters never hear of progress, or of the failure.
    wm_publish_notify: "wm.publish_notify" fails "watermark::carries_data_to_a_waiter" with Deadlock;
    wm_fail_notify: "wm.fail_notify" fails "watermark::waiters_before_and_after_failure" with Deadlock;
    // What was reached is reported as failed.
    wm_fail_acquire:
        "wm.fail_acquire" fails "watermark::waiters_before_and_after_failure" with Assertion;
    wm_is_failed_acquire:
        "wm.is_failed_acquire" fails "watermark::failure_shows_progress" with Assertion;
    wm_reread_after_fail:
        "wm.reread_after_fail" fails "watermark::waiters_before_and_after_failure" with Assertion;
    // The same, and only if another thread than the publisher declares the failure: the
    // publisher's own order is kept by the fence of its notification.
    wm_fail_release:
        "wm.fail_release" fails "watermark::another_thread_fails_after_progress" with Assertion;

    // The receiver takes a value that is not written yet, as far as it can see.
    compl_release: "compl.release" fails "completion::value_is_polled" with Race;
    compl_acquire: "compl.acquire" fails "completion::value_is_polled" with Race;
    // The receiver waits for ever.
    compl_notify: "compl.notify" fails "completion::value_is_handed_over" with Deadlock;
    compl_abandon: "compl.abandon" fails "completion::promise_is_abandoned" with Deadlock;

    // Both halves believe that they are the last, or the last does not see that it is.
    compl_leave: "compl.leave" fails "completion::last_to_leave_drops_the_unread" with Race;
    compl_leave_last:
        "compl.leave_last" fails "completion::last_to_leave_drops_the_unread" with Assertion;

    // The receiver sleeps on a message, or on the end.
    queue_send_notify: "queue.send_notify" fails "queue::message_wakes_the_receiver" with Deadlock;
    queue_end_notify: "queue.end_notify" fails "queue::end_wakes_the_receiver" with Deadlock;

    // A change of the list undoes another.
    list_one_at_a_time:
        "list.one_at_a_time" fails "segments::retirement_against_growth" with Assertion;
    // A destructor waits under the lock for a reader that waits for the lock.
    list_drop_outside:
        "list.drop_outside" fails "segments::retirement_against_a_reader" with Deadlock;

    // A permit is taken on the strength of a count that has changed since.
    permit_take_rmw: "permit.take_rmw" fails "permits::two_takers_in_turn" with Assertion;
    // An append gets in after the close.
    permit_refuse_closed:
        "permit.refuse_closed" fails "permits::nothing_is_taken_after_the_close" with Assertion;
    // An append waits for ever: for a permit that has been given back, or in a closed budget,
    // whether it came to sleep before the close or after it, or for more than there ever is.
    permit_free_notify: "permit.free_notify" fails "permits::blocked_taker_goes_on" with Deadlock;
    permit_close_notify: "permit.close_notify" fails "permits::close_releases_the_blocked" with Deadlock;
    permit_closed_wakes: "permit.closed_wakes" fails "permits::close_releases_the_blocked" with Deadlock;
    permit_alone: "permit.alone" fails "permits::too_large_goes_alone" with Deadlock;

    // The budget is idle, and what was done under its permits is not visible.
    permit_give_back_release:
        "permit.give_back_release" fails "permits::idle_shows_what_was_done" with Race;
    permit_idle_acquire: "permit.idle_acquire" fails "permits::idle_shows_what_was_done" with Race;
    // The budget is closed, and the reason is not visible.
    permit_close_release: "permit.close_release" fails "permits::denied_shows_the_reason" with Race;
    permit_closed_acquire:
        "permit.closed_acquire" fails "permits::denied_shows_the_reason" with Race;
    permit_closed_acquire_late:
        "permit.closed_acquire_late" fails "permits::denied_shows_the_reason" with Race;

    permit_is_closed_acquire:
        "permit.is_closed_acquire" fails "permits::closed_elsewhere" with Race;
    // The same for a permit that comes back in two steps: the answer is not visible, or who waits for
    // it sleeps on, or who waits for the room does.
    permit_settle_release:
        "permit.settle_release" fails "permits::settled_shows_the_answer" with Race;
    permit_settle_notify:
        "permit.settle_notify" fails "permits::settled_shows_the_answer" with Deadlock;
    permit_room_notify: "permit.room_notify" fails "permits::room_before_the_answer" with Deadlock;

    // Who waits for a lane keeps the others out of the queue.
    room_lane_before_queue:
        "room.lane_before_queue" fails "room::full_lane_keeps_nobody_out" with Deadlock;
    // A permit of the lane is lost, and closing waits for it.
    room_give_back_the_first:
        "room.give_back_the_first" fails "room::full_queue_costs_no_permit" with Deadlock;
    // A submit waits for the queue though its lane is closed: it does not look, or is not woken, or
    // does not see why.
    room_lane_ends_queue_wait:
        "room.lane_ends_queue_wait" fails "room::close_ends_a_wait_for_the_queue" with Deadlock;
    room_wake_queue: "room.wake_queue" fails "room::close_ends_a_wait_for_the_queue" with Deadlock;
    // The lane is closed and a ticket has no outcome, or has one that cannot be seen.
    room_settle_after_answer:
        "room.settle_after_answer" fails "room::ticket_has_its_outcome_after_the_close" with Assertion;
    // A ticket has its outcome and the pipeline is still full, or who waits for its place is not woken.
    room_make_room_before_answer:
        "room.make_room_before_answer" fails "room::ticket_has_made_room" with Assertion;
    // A callback waits for itself.
    room_callback_takes_or_leaves:
        "room.callback_takes_or_leaves" fails "room::callback_finds_the_pipeline_full"
        with Deadlock;
    room_callback_closes_and_leaves:
        "room.callback_closes_and_leaves" fails "room::callback_closes_a_pipeline_of_one"
        with Deadlock;
    callbacks_mark_thread:
        "callbacks.mark_thread" fails "room::callback_closes_a_pipeline_of_one" with Deadlock;

    // The writer waits for an end that does not come.
    gate_take_sender: "gate.take_sender" fails "gate::append_against_close" with Deadlock;
    // An append gets behind the seal: from within, or past it.
    gate_send_inside: "gate.send_inside" fails "gate::append_against_seal" with Assertion;
    gate_shut_with_seal: "gate.shut_with_seal" fails "gate::append_against_seal" with Assertion;
    seal_learn_before_decide:
        "seal.learn_before_decide" fails "gate::append_against_seal" with Assertion;

    // An appender or a reader is told of what is not safe.
    commit_sync_before_publish:
        "commit.sync_before_publish" fails "group_commit::published_is_safe" with Assertion;
    // Whoever makes the order finds nobody who waits for it.
    commit_hand_over_before_publish:
        "commit.hand_over_before_publish" fails "group_commit::published_is_handed_over"
        with Assertion;
    // An appender is answered and its record is not published.
    commit_publish_before_answer:
        "commit.publish_before_answer" fails "group_commit::published_is_safe" with Assertion;
    // Something is written after a failure.
    commit_refuse_when_stopped:
        "commit.refuse_when_stopped" fails "group_commit::sync_fails" with Assertion;
    // What is in the queue behind a failure is never answered.
    commit_go_on_after_failure:
        "commit.go_on_after_failure" fails "group_commit::sync_fails" with Deadlock;
    commit_go_on_after_panic:
        "commit.go_on_after_panic" fails "group_commit::write_panics" with Deadlock;
    // Somebody is turned away and finds no cause.
    fail_cause_first: "fail.cause_first" fails "failure::refused_submit_finds_the_cause"
        with Assertion;

    // A reader meets the key and a value that is not the key's.
    known_key_release: "known.key_release" fails "known::insert_against_a_reader" with Assertion;
    known_key_acquire: "known.key_acquire" fails "known::insert_against_a_reader" with Assertion;
    known_value_before_key:
        "known.value_before_key" fails "known::insert_against_a_reader" with Assertion;
    // A reader sees the new value and not what was done before it was set.
    known_set_release: "known.set_release" fails "known::set_against_a_reader" with Race;
    known_value_acquire: "known.value_acquire" fails "known::set_against_a_reader" with Race;
    // A reader finds nothing in an array that is still being filled.
    known_copy_before_growth:
        "known.copy_before_growth" fails "known::growth_against_a_reader" with Assertion;

    // A window of which nobody tells the subscriber, and that it has not looked at.
    sub_add_before_look:
        "sub.add_before_look" fails "interests::subscription_against_a_window" with Deadlock;
    sub_delivered_before_places:
        "sub.delivered_before_places" fails "interests::subscription_against_a_window" with Deadlock;
    // A subscriber passes over events that it has not looked at.
    interests_wanted_before_told:
        "interests.wanted_before_told" fails "interests::subscription_passes_over_what_is_of_others" with Assertion;
    interests_told_store:
        "interests.told_store" fails "interests::subscription_passes_over_what_is_of_others" with Assertion;
    interests_told_load:
        "interests.told_load" fails "interests::subscription_passes_over_what_is_of_others" with Assertion;
    interests_begin_anew_beyond_all:
        "interests.begin_anew_beyond_all" fails "interests::subscription_passes_over_what_is_of_others" with Assertion;
    // Nobody ends the wait of one that was there.
    interests_fail_those_there:
        "interests.fail_those_there" fails "interests::subscription_against_the_end" with Deadlock;
    // Nobody ends the wait of one that came later.
    sub_look_for_the_end:
        "sub.look_for_the_end" fails "interests::subscription_against_the_end" with Deadlock;

    // A reader is told of a record and has no segment for it, whoever is in the wrong order.
    seg_push_before_publish:
        "seg.push_before_publish" fails "segments::roll_against_a_waiter" with Assertion;
    seg_watermark_before_list:
        "seg.watermark_before_list" fails "segments::roll_against_a_waiter" with Assertion;
    // A reader is told of a record that is not written yet.
    seg_write_before_publish:
        "seg.write_before_publish" fails "segments::roll_against_a_poller" with Race;
}

/// Time after which a run counts as a survivor. The slowest takes well under a second.
const RUN_TIME_MAX: Duration = Duration::from_secs(60);

/// Runs `model` with `mutant` active and asserts that it fails with `report`.
fn assert_killed(mutant: &str, model: &str, report: Report) {
    let log_path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{mutant}.log"));
    let log = File::create(&log_path).unwrap();
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", model, "--nocapture"])
        .env("THALWEG_MUTANT", mutant)
        .env_remove("THALWEG_LOOM_DEEP")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();

    let start = Instant::now();
    let status = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > RUN_TIME_MAX {
            run.kill().unwrap();
            run.wait().unwrap();
            panic!("{model} with {mutant} did not end in {RUN_TIME_MAX:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };

    let output = String::from_utf8_lossy(&fs::read(&log_path).unwrap()).into_owned();
    assert!(!status.success(), "{model} passes with {mutant}:\n{output}");
    assert!(
        output.contains(report.text()),
        "{model} with {mutant} fails without saying {:?}:\n{output}",
        report.text()
    );
}

/// The texts of the shipped files, without their tests.
fn sources() -> Vec<String> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let engine = crate_folder.join("../engine/src");
    let sync = fs::read_dir(engine.join("sync")).unwrap().map(|entry| entry.unwrap().path());
    let mut shipped: Vec<_> = sync.filter(|file| !file.ends_with("tests.rs")).collect();
    let elsewhere = ["callbacks", "gate", "group_commit", "interests", "permits", "room"];
    shipped.extend(elsewhere.map(|file| engine.join(format!("pipeline/{file}.rs"))));
    shipped.push(engine.join("order/known.rs"));
    shipped.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// The names that the shipped files give to their orderings and steps, and those of the steps
/// that a model repeats.
fn names_in_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let repeating = [
        include_str!("segments.rs"),
        include_str!("failure.rs"),
        include_str!("gate.rs"),
        include_str!("interests.rs"),
    ]
    .map(str::to_owned);
    for source in sources().into_iter().chain(repeating) {
        for call in ["ord!(\"", "step!(\"", "step(\""] {
            for rest in source.split(call).skip(1) {
                let name = rest.split('"').next().unwrap().to_owned();
                assert!(names.insert(name.clone()), "{name} is used twice");
            }
        }
    }
    names
}

#[test]
fn every_name_has_a_mutant() {
    let mut listed = BTreeSet::new();
    for name in KILLED.iter().chain(EQUIVALENT.iter().map(|(name, _)| name)) {
        assert!(listed.insert((*name).to_owned()), "{name} is listed twice");
    }
    assert_eq!(listed, names_in_sources());
}

#[test]
fn every_ordering_has_a_name() {
    for source in sources() {
        for unnamed in ["Ordering::Acquire", "Ordering::Release", "Ordering::AcqRel"] {
            assert!(!source.contains(unnamed), "{unnamed} outside `ord!`");
        }
    }
}

#[test]
fn unknown_names_change_nothing() {
    let survivor = std::panic::catch_unwind(|| {
        assert_killed("no.such.name", "event_count::one_waiter", Report::Deadlock);
    });
    let message = survivor.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("passes with no.such.name"), "{message}");
}
