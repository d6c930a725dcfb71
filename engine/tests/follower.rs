//! Followers: readers in other processes, while an owner writes, dies, and comes back.

mod common;

use std::time::Duration;

use thalweg::{Event, Follower, Store};

/// No wait takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Payloads of all events that a follower shows now, as text.
fn payloads(follower: &Follower) -> Vec<String> {
    let text = |event: Event| String::from_utf8_lossy(event.payload()).into_owned();
    follower.read(..).expect("reads").map(|event| text(event.expect("an event"))).collect()
}

#[test]
fn a_follower_sees_what_is_appended_after_it_was_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows an empty store");
    assert_eq!(follower.delivered(), 0);
    let mut events = follower.subscribe(0).expect("subscribes");
    assert!(events.try_next().expect("nothing is wrong").is_none());
    let stream = store.appender("s").expect("an appender");
    for number in 0..10_u64 {
        stream.append(format!("{number}")).expect("accepted").wait().expect("appended");
        let event = events.next_timeout(PATIENCE).expect("no error").expect("it comes");
        assert_eq!((event.global(), event.local()), (number, number));
        assert_eq!(event.payload(), format!("{number}").as_bytes());
    }
    let view = follower.stream("s").expect("no error").expect("there is such a stream");
    assert_eq!(view.len(), 10);
    assert!(follower.stream("t").expect("no error").is_none());
    store.close().expect("closes");
    assert_eq!(payloads(&follower).len(), 10);
}
