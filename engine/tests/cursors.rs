//! Cursors: where consumers are, through marks that are atomic with what they append, in every life of
//! the store.

mod common;

use common::{Rng, acked, append, check, expected, shared, soon};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, Batch, Cursor, CursorError, Event, LimitError, MarkChange, MixedBatch, Options, Placement,
    Refusal, Rejection, Store,
};

fn open(storage: &MemoryStorage) -> Store {
    Options::new().segment_bytes(1 << 20).open_on(shared(storage)).expect("opens")
}

/// A store with so many delivered events.
fn with_events(count: u64) -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    for _ in 0..count {
        append(&store, "source", "event");
    }
    (storage, store)
}

fn listed(store: &Store) -> Vec<(String, u64, u64)> {
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    store.cursors().iter().map(|info| (text(&info.name), info.at, info.lag)).collect()
}

fn rejected(reason: Rejection) -> Placement {
    Placement::Rejected { reason, tips: Vec::new() }
}

#[test]
fn a_cursor_is_where_it_was_committed_in_every_life_of_the_store() {
    let (storage, store) = with_events(5);
    let mailer = store.cursor("mailer").expect("a cursor");
    assert_eq!((mailer.name(), mailer.at(), mailer.lag()), (&b"mailer"[..], 0, 5));
    assert_eq!(listed(&store), []);
    mailer.commit(3).expect("commits");
    assert_eq!((mailer.at(), mailer.lag()), (3, 2));
    store.cursor("other").expect("a cursor").commit(0).expect("commits");
    let all = [(String::from("mailer"), 3, 2), (String::from("other"), 0, 5)];
    assert_eq!(listed(&store), all);

    // A kill at the moment of the answer, without a checkpoint, and with one.
    let killed = storage.fork();
    assert_eq!(listed_when_ordered(&open(&killed)), all);
    store.checkpoint().expect("a checkpoint");
    let killed = storage.fork();
    let reopened = open(&killed);
    assert_eq!(listed(&reopened), all, "of the checkpoint, at once");
    check(&reopened, &expected(&killed));
    let reader = Options::new().open_read_only_on(shared(&killed)).expect("opens");
    assert_eq!(listed(&reader), all);
    // A close; and all that is derived is made again.
    store.close().expect("closes");
    assert_eq!(listed(&open(&storage)), all);
    common::log::keep_the_log_only(&storage);
    let rebuilt = open(&storage);
    assert_eq!(rebuilt.cursor("mailer").expect("waits for the order").at(), 3);
    assert_eq!(listed(&rebuilt), all);
    assert_eq!(rebuilt.verify().expect("verifies").problems, []);
}

fn listed_when_ordered(store: &Store) -> Vec<(String, u64, u64)> {
    store.wait_committed(store.durable_end()).expect("ordered");
    listed(store)
}

#[test]
fn a_cursor_goes_up_and_only_a_reset_takes_it_down() {
    let (_storage, store) = with_events(5);
    let cursor = store.cursor("c").expect("a cursor");
    let again = cursor.clone();
    cursor.commit(4).expect("commits");
    again.commit(2).expect("it has passed that");
    assert_eq!((cursor.at(), again.at()), (4, 4));
    // Also where the order has to say so.
    let receipt = submit(&store, Batch::new().mark("c", 1));
    assert_eq!(receipt, [Placement::Marked { at: Some(4) }]);
    cursor.reset(1).expect("resets");
    assert_eq!(cursor.at(), 1);
    cursor.commit(2).expect("commits");
    assert_eq!(cursor.at(), 2);
    cursor.remove().expect("removes");
    assert_eq!((cursor.at(), listed(&store)), (0, vec![]));
    cursor.remove().expect("removes what is not there");
    cursor.commit(1).expect("is there again");
    assert_eq!(listed(&store), [(String::from("c"), 1, 4)]);
}

#[test]
fn a_cursor_is_never_beyond_what_is_delivered() {
    let (_storage, store) = with_events(2);
    let cursor = store.cursor("c").expect("a cursor");
    for next in [3, u64::MAX] {
        for result in [cursor.commit(next), cursor.commit_relaxed(next), cursor.reset(next)] {
            let error = result.expect_err("is not delivered");
            assert!(
                matches!(error, CursorError::Undelivered { next: at, delivered: 2 } if at == next)
            );
        }
    }
    // What the batch itself delivers comes after what its consumer has read, but before its mark.
    let mixed = |next| {
        let mut batch = MixedBatch::new();
        batch.push("out", &Event::new("made")).expect("within the limits");
        batch.push_mark("c", MarkChange::Advance(next)).expect("within the limits");
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements
    };
    assert_eq!(mixed(3)[1], Placement::Marked { at: Some(3) });
    assert_eq!(mixed(5)[1], rejected(Rejection::Undelivered { delivered: 4 }));
    assert_eq!(cursor.at(), 3);
}

fn submit(store: &Store, batch: Batch) -> Vec<Placement> {
    let appender = store.appender_with("out", acked(Ack::Ordered)).expect("an appender");
    appender.submit(batch).expect("accepted").wait().expect("appended").placements
}

#[test]
fn a_mark_counts_if_all_events_before_it_in_its_batch_are_taken() {
    let (storage, store) = with_events(9);
    let event = |id: &str| Event::new("made").id(id);
    let mut next = 0;
    let mut placed = |batch: Batch| {
        next += 1;
        let placements = submit(&store, batch.mark("c", next));
        assert_eq!(store.cursor("c").expect("a cursor").at() == next, {
            matches!(placements.last(), Some(Placement::Marked { .. }))
        });
        placements.last().cloned().expect("the mark is the last")
    };
    let marked = |at| Placement::Marked { at: Some(at) };
    assert_eq!(placed(Batch::from([event("a"), event("b")])), marked(1));
    // Duplicates and held events are taken.
    assert_eq!(placed(Batch::from([event("a"), event("h").parents(["never"])])), marked(2));
    // A rejection or a conflict anywhere in the batch is one too many.
    let refused = rejected(Rejection::Previous);
    assert_eq!(placed(Batch::from([event("d").if_local(7), event("e")])), refused);
    assert_eq!(placed(Batch::from([event("f"), event("g").if_tips(["a"])])), refused);
    assert_eq!(placed(Batch::from([Event::new("other").id("a"), event("i")])), refused);
    // And nothing of another batch is.
    assert_eq!(placed(Batch::new()), marked(6));
    store.seal("out").expect("seals");
    let appender = store.appender_with("out", acked(Ack::Ordered)).expect("an appender");
    let refused = appender.submit(Batch::from([event("j")]).mark("c", 7)).expect_err("is sealed");
    assert!(matches!(refused.reason, Refusal::Sealed));
    assert_eq!(refused.batch.len(), 2, "it comes back whole");
    assert_eq!(listed(&store)[0].1, 6);
    check(&store, &expected(&storage));
}

#[test]
fn a_mark_depends_on_events_of_all_streams() {
    let (storage, store) = with_events(3);
    let push = |batch: &mut MixedBatch, stream: &str, local| {
        batch.push(stream, &Event::new("made").if_local(local)).expect("within the limits");
    };
    let mut batch = MixedBatch::new();
    push(&mut batch, "a", 0);
    batch.push_mark("first", MarkChange::Advance(1)).expect("within the limits");
    push(&mut batch, "b", 9);
    push(&mut batch, "c", 0);
    batch.push_mark("second", MarkChange::Advance(1)).expect("within the limits");
    batch.push_mark("first", MarkChange::Advance(2)).expect("within the limits");
    batch.push_mark("third", MarkChange::Remove).expect("within the limits");
    let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
    let placements = ticket.wait().expect("appended").placements;
    assert_eq!(placements[1], Placement::Marked { at: Some(1) });
    assert!(matches!(
        placements[2],
        Placement::Rejected { reason: Rejection::Local { next: 0 }, .. }
    ));
    assert_eq!(placements[4..], [(); 3].map(|()| rejected(Rejection::Previous)));
    assert_eq!(listed(&store), [(String::from("first"), 1, 4)]);
    check(&store, &expected(&storage));
    assert_eq!(store.stats().rejected, 1, "marks are not counted among the events");
}

#[test]
fn relaxed_commits_share_marks_and_a_flush_waits_for_them() {
    const COMMITS: u64 = 2000;
    let (storage, store) = with_events(1);
    let mut batch = MixedBatch::new();
    for _ in 0..COMMITS {
        batch.push("source", &Event::new("event")).expect("within the limits");
    }
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    let cursor = store.cursor("c").expect("a cursor");
    let before = store.durable_end();
    for next in 1..=COMMITS {
        cursor.commit_relaxed(next).expect("takes it");
    }
    cursor.flush().expect("flushes");
    assert_eq!(cursor.at(), COMMITS);
    // A frame and a record for each would be more.
    assert!(store.durable_end() - before < COMMITS * 100 / 2, "every commit has its own record");
    let killed = open(&storage.fork());
    assert_eq!(killed.cursor("c").expect("a cursor").at(), COMMITS);
    // Without a flush, by itself.
    cursor.commit_relaxed(COMMITS + 1).expect("takes it");
    soon("the last relaxed commit", move || {
        while cursor.at() <= COMMITS {
            std::thread::yield_now();
        }
    });
}

#[test]
fn threads_commit_in_any_order() {
    let (_storage, store) = with_events(200);
    let cursor = store.cursor("c").expect("a cursor");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cursor = &cursor;
            scope.spawn(move || {
                for next in (1..=50).map(|number| number * 4 - thread) {
                    match next % 3 {
                        0 => cursor.commit(next).expect("commits"),
                        _ => cursor.commit_relaxed(next).expect("takes it"),
                    }
                    assert!(next % 3 > 0 || cursor.at() >= next);
                }
            });
        }
    });
    cursor.flush().expect("flushes");
    assert_eq!(cursor.at(), 200);
}

/// Several consumers under one name act once between them, if the place of what they make decides.
#[test]
fn consumers_that_race_act_once_between_them() {
    const EVENTS: u64 = 120;
    let (storage, store) = with_events(EVENTS);
    let consume = |mut rng: Rng| {
        let out = store.appender_with("out", acked(Ack::Ordered)).expect("an appender");
        let mut late = 0;
        loop {
            let place = store.stream("out").expect("finds").map_or(0, |view| view.len());
            let cursor = store.cursor("consumers").expect("a cursor");
            if cursor.at() == EVENTS {
                return late;
            }
            let mut source = store.subscribe_stream("source", &cursor).expect("subscribes");
            let events = source.by_ref().take(1 + rng.below(3) as usize);
            let acts = events
                .map(|event| event.expect("reads").global())
                .take_while(|global| *global < EVENTS)
                .map(|global| global.to_string());
            let act = Event::new(acts.collect::<Vec<_>>().join(" ")).if_local(place);
            let next = source.next_sequence().min(EVENTS);
            let ticket = out.submit(Batch::from([act]).mark("consumers", next)).expect("accepted");
            match &ticket.wait().expect("appended").placements[..] {
                [Placement::Delivered { .. }, Placement::Marked { at }] => {
                    assert_eq!(*at, Some(next));
                }
                [Placement::Rejected { .. }, mark] => {
                    assert_eq!(*mark, rejected(Rejection::Previous));
                    late += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    // Where everybody stops, and nobody waits for more.
    append(&store, "source", "one more");
    let late: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|seed| scope.spawn(move || consume(Rng(seed)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("ends")).sum()
    });
    println!("{late} were late");
    let acts = store.stream("out").expect("finds").expect("is there").read(..).expect("reads");
    let acts: Vec<u64> = acts
        .flat_map(|event| {
            let text = String::from_utf8(event.expect("reads").payload().to_vec()).expect("ours");
            text.split_whitespace().map(|act| act.parse().expect("ours")).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(acts, (0..EVENTS).collect::<Vec<_>>());
    check(&store, &expected(&storage));
}

#[test]
fn there_are_so_many_cursors_and_no_more() {
    let (storage, store) = with_events(1);
    let mut batch = MixedBatch::new();
    for number in 0..Cursor::COUNT_MAX {
        batch.push_mark(number.to_le_bytes(), MarkChange::Advance(1)).expect("within the limits");
    }
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    let one_more = store.cursor("one more").expect("a name");
    assert!(matches!(one_more.commit(1), Err(CursorError::TooMany)));
    one_more.commit_relaxed(1).expect("nobody hears of it");
    assert!(matches!(one_more.flush(), Err(CursorError::TooMany)));
    let first = store.cursor(0_usize.to_le_bytes()).expect("a cursor");
    first.reset(0).expect("those that are there go on");
    first.remove().expect("removes");
    one_more.commit(1).expect("there is room");
    check(&store, &expected(&storage));
    store.close().expect("closes");
    assert_eq!(open(&storage).cursors().len(), Cursor::COUNT_MAX);
}

#[test]
fn what_a_cursor_cannot_do_it_says() {
    let (storage, store) = with_events(1);
    for len in [0, 256] {
        let error = store.cursor(vec![b'c'; len]).expect_err("no name");
        let limit = LimitError::Cursor { len };
        assert!(
            matches!(error, CursorError::Refused(Refusal::Limit(named)) if named == limit),
            "{error}"
        );
    }
    let longest = store.cursor([b'c'; 255]).expect("a cursor");
    longest.commit(1).expect("commits");
    store.close().expect("closes");
    assert!(matches!(longest.commit(0), Err(CursorError::Refused(Refusal::Closed))));
    assert_eq!(longest.at(), 1, "where it was");
    longest.commit(1).expect("is there");
    let reader = Options::new().open_read_only_on(shared(&storage)).expect("opens");
    let cursor = reader.cursor([b'c'; 255]).expect("a cursor");
    assert_eq!(cursor.at(), 1);
    assert!(matches!(cursor.reset(0), Err(CursorError::Refused(Refusal::ReadOnly))));
    assert!(matches!(cursor.commit_relaxed(0), Err(CursorError::Refused(Refusal::ReadOnly))));
}

#[test]
fn a_cursor_does_not_keep_the_store_open() {
    let (storage, store) = with_events(1);
    let cursor = store.cursor("c").expect("a cursor");
    drop(store);
    let store = open(&storage);
    assert!(cursor.commit_relaxed(1).is_err());
    assert!(storage.list().is_ok() && store.cursors().is_empty());
}
