//! What is done to a store while the disk fails below it: many appenders of all kinds, readers, and
//! everything else that a store can be asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lockstep::thread::{self, JoinHandle};
use thalweg::reference::{SerialDiscard, SerialEvent, SerialMark, SerialRecord};
use thalweg::{
    Ack, AppenderOptions, Barrier, Batch, Cause, Cursor, CursorError, DiscardReason, LogOpenError,
    MarkChange, MixedAppender, MixedBatch, OpenError, Options, ReadError, Refusal, SealError,
    Start, Store, StreamAppender, Subscription, Ticket,
};

use crate::common::to_new;
use crate::disk::{Dice, Disk};
use crate::model::{Followed, Model, SOLO, Submitted};

/// How much of what.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub appenders: u64,
    pub batches: u64,
    pub readers: u64,
    /// Ids, so that some come twice and parents are met before and after.
    pub ids: u64,
    pub streams: u64,
    /// One batch in so many is large; none if 0.
    pub large: u64,
    /// One appender, one batch after the other, and all of the same length: what one frame has left behind
    /// stands where another would begin.
    pub uniform: bool,
}

impl Size {
    pub fn of(uniform: bool, dice: &mut Dice) -> Self {
        Size {
            uniform,
            appenders: if uniform { 1 } else { 1 + dice.below(3) },
            // A session that is shorter than the one before leaves most of what that has left behind.
            batches: if uniform { 1 << dice.below(4) } else { 1 + dice.below(8) },
            readers: dice.below(3),
            ids: 4 + dice.below(40),
            streams: 1 + dice.below(4),
            large: [0, 0, 3, 12][dice.below(4) as usize],
        }
    }
}

/// Runs it all, and returns when all has its outcome.
pub fn run(store: &Store, disk: &Disk, model: &Arc<Model>, size: Size, dice: &mut Dice) {
    let mut threads = Vec::new();
    for number in 0..size.appenders {
        let (store, model, dice) = (store.clone(), Arc::clone(model), Dice(dice.next()));
        threads.push(start(format!("appender {number}"), move || {
            Appending::new(&store, &model, size, dice).run();
        }));
    }
    for number in 0..size.readers {
        let (store, model, dice) = (store.clone(), Arc::clone(model), Dice(dice.next()));
        threads.push(start(format!("reader {number}"), move || read(&store, &model, dice)));
    }
    for _ in 0..dice.below(5) {
        ask(store, disk, model, dice);
    }
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Appends one batch more, in a frame of its own.
pub fn append_last(store: &Store, model: &Model) {
    let lane = model.lane(true);
    let number = model.submit(lane, |number| {
        let last = event(b"last", format!("batch {number}").into_bytes());
        vec![(SerialRecord::Event(last), true)]
    });
    let batch = mixed_of(&model.records(number));
    let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
    model.accepted(number);
    model.outcome(number, ticket.wait());
}

fn start(name: String, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name).spawn(body).expect("starts")
}

/// An appender of one of the kinds that there are.
enum Appender {
    Stream(StreamAppender),
    Mixed(MixedAppender),
    Store(Store),
}

struct Appending<'a> {
    store: &'a Store,
    model: &'a Arc<Model>,
    size: Size,
    dice: Dice,
    appender: Appender,
    ack: Ack,
    lane: usize,
    tickets: VecDeque<(usize, Ticket)>,
}

impl<'a> Appending<'a> {
    fn new(store: &'a Store, model: &'a Arc<Model>, size: Size, mut dice: Dice) -> Self {
        let ack = if dice.once_in(2) { Ack::Durable } else { Ack::Ordered };
        let options = AppenderOptions::new().ack(ack).pipeline(1 + dice.below(4) as usize);
        let lane = model.lane(true);
        let appender = match dice.below(5) {
            0 => Appender::Store(store.clone()),
            1 | 2 => {
                let stream = format!("s{}", dice.below(size.streams));
                Appender::Stream(store.appender_with(stream, options).expect("an appender"))
            }
            _ => Appender::Mixed(store.mixed_appender(options).expect("an appender")),
        };
        // Batches without an appender have nothing to do with each other.
        let lane = if matches!(appender, Appender::Store(..)) { model.lane(false) } else { lane };
        let tickets = VecDeque::new();
        Appending { store, model, size, dice, appender, ack, lane, tickets }
    }

    fn run(mut self) {
        for _ in 0..self.size.batches {
            if !self.append() {
                break;
            }
            if self.size.uniform || self.dice.once_in(3) {
                self.wait_for_one();
            }
            match (self.dice.below(60), &self.appender) {
                (0, Appender::Stream(appender)) => appender.abort(),
                (0, Appender::Mixed(appender)) => appender.abort(),
                (1 | 2, Appender::Stream(appender)) => drop(appender.flush()),
                (1 | 2, Appender::Mixed(appender)) => drop(appender.flush()),
                (3, Appender::Stream(appender)) => drop(appender.close()),
                (3, Appender::Mixed(appender)) => drop(appender.close()),
                _ => {}
            }
        }
        if self.dice.once_in(8) {
            // The outcome goes to nobody; the batch is appended all the same.
            while let Some((number, ticket)) = self.tickets.pop_front() {
                self.model.forget(number);
                drop(ticket);
            }
        }
        while !self.tickets.is_empty() {
            self.wait_for_one();
        }
    }

    fn wait_for_one(&mut self) {
        let Some((number, mut ticket)) = self.tickets.pop_front() else { return };
        if self.dice.once_in(4)
            && let Some(outcome) = ticket.wait_timeout(Duration::from_millis(self.dice.below(3)))
        {
            assert!(ticket.try_wait().is_none(), "an outcome is given once");
            return self.model.outcome(number, outcome);
        }
        if let Some(outcome) = ticket.try_wait() {
            return self.model.outcome(number, outcome);
        }
        let outcome = ticket.wait();
        self.model.outcome(number, outcome);
    }

    /// Appends one batch; says whether to go on.
    fn append(&mut self) -> bool {
        let fixed = match &self.appender {
            Appender::Stream(appender) => Some(appender.stream().to_vec()),
            Appender::Mixed(_) | Appender::Store(..) => None,
        };
        let uniform = self.size.uniform;
        let mut events = if uniform { Vec::new() } else { self.events(fixed.as_deref()) };
        let first = if uniform { 3 } else { self.dice.below(4) };
        let stream = match events.first() {
            Some((SerialRecord::Event(event), _)) => event.stream.clone(),
            _ => fixed.unwrap_or_else(|| b"s0".to_vec()),
        };
        let number = self.model.submit(self.lane, |number| {
            let mut name = event(&stream, format!("batch {number:04}").into_bytes());
            name.parents = match first {
                0 => Some(vec![]),
                1 => Some(vec![b"never".to_vec()]),
                _ => None,
            };
            events.insert(0, (SerialRecord::Event(name), true));
            events
        });
        let refusal = self.submit(number, &self.model.records(number));
        match refusal {
            None => {
                self.model.accepted(number);
                true
            }
            Some(reason) => {
                self.model.refused(number);
                match reason {
                    Refusal::Full | Refusal::TimedOut | Refusal::Sealed => true,
                    Refusal::Closed | Refusal::Stopped(_) => false,
                    Refusal::Poisoned(cause) => {
                        assert!(!matches!(cause, Cause::Panic { .. }), "{cause}");
                        false
                    }
                    other => panic!("batch {number} is refused: {other}"),
                }
            }
        }
    }

    fn submit(&mut self, number: usize, records: &[Submitted]) -> Option<Refusal> {
        let model = Arc::clone(self.model);
        let timeout = Duration::from_micros(self.dice.below(3000));
        let told = move |outcome| model.outcome(number, outcome);
        let (way, ack) = (self.dice.below(6), self.ack);
        let submitted = match &self.appender {
            Appender::Stream(appender) => {
                let batch = batch_of(records);
                match way {
                    0 => appender.submit_with(batch, told).map(|()| None).map_err(|e| e.reason),
                    1 => appender.try_submit_with(batch, told).map(|()| None).map_err(|e| e.reason),
                    2 => appender.try_submit(batch).map(Some).map_err(|e| e.reason),
                    3 => appender.submit_timeout(batch, timeout).map(Some).map_err(|e| e.reason),
                    _ => appender.submit(batch).map(Some).map_err(|e| e.reason),
                }
            }
            Appender::Mixed(appender) => {
                let batch = mixed_of(records);
                match way {
                    0 => appender.submit_with(batch, told).map(|()| None).map_err(|e| e.reason),
                    1 => appender.try_submit_with(batch, told).map(|()| None).map_err(|e| e.reason),
                    2 => appender.try_submit(batch).map(Some).map_err(|e| e.reason),
                    3 => appender.submit_timeout(batch, timeout).map(Some).map_err(|e| e.reason),
                    _ => appender.submit(batch).map(Some).map_err(|e| e.reason),
                }
            }
            Appender::Store(store) => {
                store.submit(mixed_of(records), ack).map(Some).map_err(|e| e.reason)
            }
        };
        match submitted {
            Ok(ticket) => {
                self.tickets.extend(ticket.map(|ticket| (number, ticket)));
                None
            }
            Err(reason) => Some(reason),
        }
    }

    /// The events of a batch, all of one stream if the appender has one.
    fn events(&mut self, fixed: Option<&[u8]>) -> Vec<Submitted> {
        let mut events: Vec<Submitted> = Vec::new();
        for _ in 0..self.dice.below(5) {
            let stream = match fixed {
                Some(stream) => stream.to_vec(),
                None => format!("s{}", self.dice.below(self.size.streams)).into_bytes(),
            };
            if fixed.is_none() && self.dice.once_in(20) {
                events.push((SerialRecord::Seal(stream.clone()), true));
                if self.dice.once_in(2) {
                    events.push((SerialRecord::Unseal(stream), true));
                }
                continue;
            }
            if fixed.is_none() && self.dice.once_in(16) {
                events.push((SerialRecord::Unseal(stream), true));
                continue;
            }
            if fixed.is_none() && self.dice.once_in(12) {
                events.push(self.mark(false));
                continue;
            }
            if fixed.is_none() && self.dice.once_in(20) {
                // Of the streams, the one that nobody follows.
                let trim = SerialRecord::StreamTrim(b"s3".to_vec(), self.dice.below(20));
                events.push((trim, true));
                continue;
            }
            if fixed.is_none() && self.dice.once_in(8) {
                let (id, reason) = (self.name(), DiscardReason::Discarded);
                events.push((SerialRecord::Discard(SerialDiscard { stream, id, reason }), true));
                continue;
            }
            let earlier = self.model.earlier(self.dice.next());
            let again = earlier.filter(|event| fixed.is_none_or(|fixed| event.stream == fixed));
            if let Some(again) = again.filter(|_| self.dice.once_in(6)) {
                let again = SerialEvent { with_previous: false, ..again };
                events.push((SerialRecord::Event(again), true));
                continue;
            }
            let previous = match events.last() {
                Some((SerialRecord::Event(event), _)) => Some(event.stream.clone()),
                _ => None,
            };
            events.push(self.event(stream, previous.as_deref()));
        }
        if self.size.large > 0 && self.dice.once_in(self.size.large) {
            let stream = fixed.unwrap_or(b"s0");
            let mut large = event(stream, self.name());
            let len = if self.dice.once_in(10) { 1_200_000 } else { self.dice.below(400_000) };
            large.payload = vec![self.dice.below(256) as u8; len as usize];
            events.push((SerialRecord::Event(large), true));
        }
        if self.dice.once_in(4) {
            events.push(self.mark(fixed.is_some()));
        }
        events
    }

    /// A mark, now and then beyond what is delivered.
    fn mark(&mut self, only_up: bool) -> Submitted {
        let cursor = format!("c{}", self.dice.below(3)).into_bytes();
        let next = self.dice.below(2 + self.store.stats().delivered);
        let change = match self.dice.below(6) {
            0 if !only_up => MarkChange::Remove,
            1 if !only_up => MarkChange::Reset(next),
            _ => MarkChange::Advance(next),
        };
        // How far the batch reaches back is only known when it is encoded.
        (SerialRecord::Mark(SerialMark { cursor, change, reach: 0 }), true)
    }

    fn name(&mut self) -> Vec<u8> {
        format!("e{}", self.dice.below(self.size.ids)).into_bytes()
    }

    fn event(&mut self, stream: Vec<u8>, previous: Option<&[u8]>) -> Submitted {
        let with_id = !self.dice.once_in(8);
        let mut event = event(&stream, if with_id { self.name() } else { Vec::new() });
        event.parents = match self.dice.below(8) {
            0..3 => None,
            3 => Some(vec![]),
            _ => Some((0..1 + self.dice.below(3)).map(|_| self.name()).collect()),
        };
        event.payload = vec![self.dice.below(3) as u8; self.dice.below(60) as usize];
        match self.dice.below(16) {
            0 => event.require_parents = true,
            1 => {
                let len = self.store.stream(&stream).ok().flatten().map_or(0, |view| view.len());
                event.if_local = Some(len + self.dice.below(2));
            }
            2 => {
                event.if_tips = true;
                event.parents = Some(self.store.tips(&stream).unwrap_or_default());
            }
            3 | 4 if previous == Some(&stream) => event.with_previous = true,
            _ => {}
        }
        (SerialRecord::Event(event), with_id)
    }
}

/// A chained event without anything.
fn event(stream: &[u8], id: Vec<u8>) -> SerialEvent {
    SerialEvent {
        stream: stream.to_vec(),
        id,
        parents: None,
        require_parents: false,
        if_tips: false,
        if_local: None,
        with_previous: false,
        payload: Vec::new(),
    }
}

fn batch_of(records: &[Submitted]) -> Batch {
    records.iter().fold(Batch::new(), |mut batch, (record, with_id)| match record {
        SerialRecord::Event(event) => {
            batch.push(to_new(event, *with_id));
            batch
        }
        SerialRecord::Mark(SerialMark { cursor, change: MarkChange::Advance(next), .. }) => {
            batch.mark(cursor.clone(), *next)
        }
        _ => unreachable!("only mixed batches have seals, and resets"),
    })
}

fn mixed_of(records: &[Submitted]) -> MixedBatch {
    let mut batch = MixedBatch::new();
    for (record, with_id) in records {
        match record {
            SerialRecord::Event(event) => batch.push(&event.stream, &to_new(event, *with_id)),
            SerialRecord::Seal(stream) => batch.push_seal(stream),
            SerialRecord::Unseal(stream) => batch.push_unseal(stream),
            SerialRecord::Mark(mark) => batch.push_mark(&mark.cursor, mark.change),
            SerialRecord::StreamTrim(stream, first) => batch.push_stream_trim(stream, *first),
            SerialRecord::Discard(discard) => {
                batch.push_discard(&discard.stream, &discard.id, discard.reason)
            }
        }
        .expect("within the limits");
    }
    batch
}

/// Follows the order, or reads what is there, and notes every number.
fn read(store: &Store, model: &Model, mut dice: Dice) {
    let mut followed = Followed { from: dice.below(1 + store.delivered()), ..Followed::default() };
    let stream = format!("s{}", dice.below(3));
    followed.stream = dice.once_in(2).then(|| stream.clone().into_bytes());
    let following = match dice.below(3) {
        _ if followed.stream.is_none() => store.subscribe(followed.from),
        0 => store.subscribe_stream(&stream, followed.from),
        1 => store.subscribe_prefix(&stream, followed.from),
        _ => store.subscribe_streams([stream.as_str(), "never"], followed.from),
    };
    let mut following = following.expect("subscribes");
    read_on(store, model, &mut following, &mut followed.globals, dice);
    followed.to = following.next_sequence();
    model.followed(followed);
}

fn read_on(
    store: &Store,
    model: &Model,
    following: &mut Subscription,
    globals: &mut Vec<u64>,
    mut dice: Dice,
) {
    let Ok(cursor) = store.cursor(SOLO) else { return };
    for _ in 0..dice.below(60) {
        match dice.below(12) {
            0 => store.read(..).expect("reads").for_each(|event| saw(model, event)),
            1 => {
                let stream = format!("s{}", dice.below(4));
                if let Ok(Some(view)) = store.stream(stream) {
                    let local = dice.below(view.len()).max(view.first());
                    view.read(local..).expect("reads").for_each(|event| saw(model, event));
                }
            }
            2 => {
                let id = format!("e{}", dice.below(20));
                if let Ok(Some(event)) = store.get(format!("s{}", dice.below(4)), id) {
                    model.saw(&event);
                }
            }
            _ => {
                let next = following.next_sequence();
                match following.next_timeout(Duration::from_millis(dice.below(5))) {
                    Ok(Some(event)) => {
                        assert!(event.global() >= next, "never back");
                        globals.push(event.global());
                        model.saw(&event);
                        commit(&cursor, model, following.next_sequence(), &mut dice);
                    }
                    Ok(None) => {}
                    Err(ReadError::Closed | ReadError::Poisoned(_)) => return,
                    Err(error) => panic!("global {next} cannot be read: {error}"),
                }
            }
        }
    }
}

/// Says that a consumer has come to `next`, in one of the ways that there are.
fn commit(cursor: &Cursor, model: &Model, next: u64, dice: &mut Dice) {
    let committed = match dice.below(16) {
        0 => cursor.commit(next).map(|()| assert!(cursor.at() >= next)),
        1 => cursor.flush(),
        2..8 => cursor.commit_relaxed(next),
        _ => return,
    };
    model.cursor_at(cursor.at());
    match committed {
        Ok(()) | Err(CursorError::Failed(_) | CursorError::Undecided) => {}
        Err(CursorError::Refused(Refusal::Closed | Refusal::Poisoned(_) | Refusal::Stopped(_))) => {
        }
        Err(error) => panic!("{error}"),
    }
}

fn saw(model: &Model, event: Result<thalweg::Event, ReadError>) {
    model.saw(&event.expect("what is committed can be read"));
}

/// One of the other things that a store can be asked for.
fn ask(store: &Store, disk: &Disk, model: &Model, dice: &mut Dice) {
    match dice.below(14) {
        0..4 => drop(store.checkpoint()),
        4 => drop(store.held()),
        5 => drop(store.streams()),
        6 => {
            let stats = store.stats();
            let chain =
                [stats.committed, stats.ordered, stats.scanned, stats.durable, stats.written];
            assert!(chain.is_sorted(), "{stats:?}");
        }
        7 => drop(store.wait_committed(store.durable_end())),
        8 => {
            // What it finds to be damaged at the moment of a fault may be half written.
            if let Ok(report) = store.verify()
                && disk.happened().is_empty()
            {
                assert_eq!(report.problems, []);
            }
        }
        9 => read_beside(disk, model),
        10 | 11 => wait_for_own(store, model, dice),
        _ => seal(store, model, dice),
    }
}

/// Another process reads along. What it shows it has made durable.
fn read_beside(disk: &Disk, model: &Model) {
    let options = Options::new().scanners(1).orderers(1).pin(false);
    let reader = match options.open_read_only_on(Arc::new(disk.clone())) {
        Ok(reader) => reader,
        Err(error) => {
            let is_io = matches!(
                error,
                OpenError::Io { .. }
                    | OpenError::Log(LogOpenError::Io { .. } | LogOpenError::Missing { .. })
            );
            return assert!(is_io, "a reader finds damage: {error}");
        }
    };
    reader.wait_committed(reader.durable_end()).expect("a reader needs no disk");
    reader.read(..).expect("reads").for_each(|event| saw(model, event));
    assert_eq!(reader.stats().corrupt, 0);
}

/// Appends to a stream of its own, and waits until that can be read, with those who waited before.
fn wait_for_own(store: &Store, model: &Model, dice: &mut Dice) {
    let stream = format!("w{}", model.batch_count()).into_bytes();
    let waiting = dice.once_in(2).then(|| {
        let subscription = match dice.below(4) {
            0 => store.subscribe_prefix(&stream, 0),
            1 => store.subscribe_streams([&stream[..], b"never"], Start::Now),
            _ => store.subscribe_stream(&stream, 0),
        };
        let mut subscription = subscription.expect("subscribes");
        start(String::from("waiter"), move || match subscription.next() {
            None | Some(Err(ReadError::Poisoned(_))) => {}
            Some(event) => assert_eq!(event.expect("reads").local(), 0),
        })
    });
    let lane = model.lane(false);
    let name = format!("batch {:04}", model.batch_count()).into_bytes();
    let first = vec![(SerialRecord::Event(event(&stream, name.clone())), true)];
    let number = model.submit(lane, |_| first);
    match store.submit(mixed_of(&model.records(number)), Ack::Durable) {
        Ok(ticket) => {
            model.accepted(number);
            let outcome = ticket.wait();
            let receipt = outcome.clone().ok();
            model.outcome(number, outcome);
            if let Some(receipt) = receipt {
                let barrier = match dice.below(2) {
                    0 => Barrier::from(&receipt),
                    _ => Barrier::Event { stream: &stream, id: &name },
                };
                match store.wait_for(barrier) {
                    Ok(()) => assert!(matches!(store.get(&stream, &name), Ok(Some(_)))),
                    Err(ReadError::Poisoned(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                if let Some(thread) = waiting {
                    thread.join().expect("it is woken, or the engine has stopped");
                }
            }
        }
        Err(_) => model.refused(number),
    }
    // The end of the store wakes the waiter.
}

/// Seals a stream of its own, and perhaps takes the seal off.
fn seal(store: &Store, model: &Model, dice: &mut Dice) {
    let lane = model.lane(false);
    let record = |record| move |_| vec![(record, true)];
    let stream = format!("z{}", model.batch_count()).into_bytes();
    let number = model.submit(lane, record(SerialRecord::Seal(stream.clone())));
    match store.seal(&stream) {
        Ok(last) => {
            assert_eq!(last, None, "nobody appends to it");
            model.stored(number);
        }
        Err(error) => return sealed(model, number, error),
    }
    let refusal = append_to(store, model, &stream);
    let is_ended = |refusal: &Refusal| matches!(refusal, Refusal::Closed | Refusal::Poisoned(_));
    let refusal = refusal.expect("a sealed stream takes nothing");
    assert!(matches!(refusal, Refusal::Sealed) || is_ended(&refusal), "{refusal}");
    if dice.once_in(2) {
        let number = model.submit(lane, record(SerialRecord::Unseal(stream.clone())));
        match store.unseal(&stream) {
            Ok(()) => {
                model.stored(number);
                if let Some(refusal) = append_to(store, model, &stream) {
                    assert!(is_ended(&refusal), "after the seal is taken off: {refusal}");
                }
            }
            Err(error) => sealed(model, number, error),
        }
    }
}

/// Appends one event to a stream, and says why not if it is refused.
fn append_to(store: &Store, model: &Model, stream: &[u8]) -> Option<Refusal> {
    let lane = model.lane(false);
    let number = model.submit(lane, |number| {
        let name = format!("batch {number:04}").into_bytes();
        vec![(SerialRecord::Event(event(stream, name)), true)]
    });
    match store.submit(mixed_of(&model.records(number)), Ack::Durable) {
        Ok(ticket) => {
            model.accepted(number);
            model.outcome(number, ticket.wait());
            None
        }
        Err(refused) => {
            model.refused(number);
            Some(refused.reason)
        }
    }
}

fn sealed(model: &Model, number: usize, error: SealError) {
    match error {
        SealError::Refused(_) => model.refused(number),
        SealError::Failed(failure) => model.outcome(number, Err(failure)),
        // It is stored, if not ordered.
        SealError::Undecided => model.stored(number),
        other => panic!("{other}"),
    }
}
