//! Two people edit a document, each on a store of their own and without a network. Then they exchange their events,
//! in any order and more than once, and see the same text.
//!
//! An edit is an event: its parents are the tips that its author saw, and its id is a hash of its parents and its
//! payload, so it is the same event everywhere. A store holds an edit until everything that its author knew has arrived.
//! All that is left to the application is to say what edits come to that know nothing of each other.
//!
//! ```sh
//! cargo run -p thalweg --example merge
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};

use thalweg::{Event, OwnedEvent, Store};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

const STREAM: &str = "document";

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let given = std::env::args().nth(1).map(PathBuf::from);
    println!("{}", run(given.as_deref().unwrap_or(temporary.path()))?);
    Ok(())
}

/// Edits, exchanges and compares.
pub fn run(dir: &Path) -> Result<String, Box<dyn Error>> {
    let alice = Replica::open(&dir.join("alice"))?;
    let bob = Replica::open(&dir.join("bob"))?;
    if alice.store.delivered() > 0 {
        return Err("wants a directory without stores of an earlier run".into());
    }
    let milk = alice.insert(None, "milk")?;
    let bread = alice.insert(Some(&milk), "bread")?;
    bob.take_in(alice.events()?)?;

    // Without a network.
    alice.insert(Some(&milk), "butter")?;
    alice.insert(Some(&bread), "jam")?;
    let eggs = bob.insert(Some(&milk), "eggs")?;
    bob.insert(Some(&eggs), "flour")?;
    bob.remove(&bread)?;
    println!("Alice has {}\nBob has   {}", alice.text()?, bob.text()?);
    assert_ne!(alice.text()?, bob.text()?);

    // The network is back, and delivers everything twice, in any order.
    let (of_alice, of_bob) = (alice.events()?, bob.events()?);
    alice.take_in(any_order(&of_bob, 1))?;
    bob.take_in(any_order(&of_alice, 2))?;
    println!("both have {}", alice.text()?);
    compare(&alice, &bob)?;

    // The next edit has both ends as its parents: it has seen everything.
    assert_eq!(bob.tips()?.len(), 2);
    bob.insert(None, "Groceries:")?;
    alice.take_in(any_order(&bob.events()?, 3))?;
    compare(&alice, &bob)?;
    assert_eq!(alice.tips()?.len(), 1);
    let text = alice.text()?;
    assert_eq!(text, bob.text()?);
    alice.store.close()?;
    bob.store.close()?;
    Ok(format!("in the end {text}"))
}

/// Both have the same events and the same text. Each store puts parents before children, and keeps its order for ever; but
/// events that know nothing of each other stand in the order in which they came, which is another one in each.
fn compare(alice: &Replica, bob: &Replica) -> Result<(), Box<dyn Error>> {
    let (of_alice, of_bob) = (alice.events()?, bob.events()?);
    for events in [&of_alice, &of_bob] {
        let mut seen = BTreeSet::new();
        for event in events {
            assert!(event.parents.iter().all(|parent| seen.contains(parent)), "parents first");
            assert!(seen.insert(&event.id), "each event once");
        }
    }
    let ids = |events: &[OwnedEvent]| events.iter().map(|event| event.id.clone()).collect();
    let (set_of_alice, set_of_bob): (BTreeSet<_>, BTreeSet<_>) = (ids(&of_alice), ids(&of_bob));
    assert_eq!(set_of_alice, set_of_bob);
    assert_eq!(alice.tips_as_set()?, bob.tips_as_set()?);
    assert_eq!(alice.text()?, bob.text()?);
    let same = of_alice.iter().zip(&of_bob).filter(|(one, other)| one.id == other.id).count();
    println!("{} events, of which {same} have the same place in both stores", of_alice.len());
    Ok(())
}

/// All events twice, shuffled.
fn any_order(events: &[OwnedEvent], salt: u8) -> Vec<OwnedEvent> {
    let twice = [events, events].concat();
    let mut numbered: Vec<_> = (0_u64..).zip(twice).collect();
    let rank = |number: u64| xxh3_64(&[&[salt][..], &number.to_le_bytes()].concat());
    numbered.sort_by_key(|(number, _)| rank(*number));
    numbered.into_iter().map(|(_, event)| event).collect()
}

struct Replica {
    store: Store,
}

impl Replica {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        Ok(Replica { store: Store::open(path)? })
    }

    /// Inserts a line behind another, or at the top. Returns its id.
    fn insert(&self, behind: Option<&str>, line: &str) -> Result<String, Box<dyn Error>> {
        self.edit(&format!("insert {} {line}", behind.unwrap_or("top")))
    }

    fn remove(&self, line: &str) -> Result<(), Box<dyn Error>> {
        self.edit(&format!("remove {line} -")).map(drop)
    }

    fn edit(&self, edit: &str) -> Result<String, Box<dyn Error>> {
        let parents = self.tips()?;
        // Whoever has to fear forgers takes a cryptographic hash.
        let id = format!("{:032x}", xxh3_128(&[&parents.concat()[..], edit.as_bytes()].concat()));
        let appender = self.store.appender(STREAM)?;
        let event = Event::new(edit).id(id.as_str()).parents(parents);
        let receipt = appender.append_event(event)?.wait()?;
        self.store.wait_for(&receipt)?;
        Ok(id)
    }

    /// Appends what somebody else has: children before their parents are held, and what is there already is a duplicate.
    fn take_in(&self, events: Vec<OwnedEvent>) -> Result<(), Box<dyn Error>> {
        let appender = self.store.appender(STREAM)?;
        for event in events {
            let event = Event::new(event.payload).id(event.id).parents(event.parents);
            appender.append_event(event)?;
        }
        appender.flush()?;
        self.store.wait_committed(self.store.durable_end())?;
        assert!(self.store.held()?.is_empty(), "all parents have come");
        Ok(())
    }

    fn events(&self) -> Result<Vec<OwnedEvent>, Box<dyn Error>> {
        self.store.read(..)?.map(|event| Ok(event?.to_owned()?)).collect()
    }

    fn tips(&self) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
        Ok(self.store.tips(STREAM)?)
    }

    fn tips_as_set(&self) -> Result<BTreeSet<Vec<u8>>, Box<dyn Error>> {
        Ok(self.tips()?.into_iter().collect())
    }

    /// The document. It depends on the events and their parents, and not on the order of those that know nothing of each other: of lines
    /// behind the same one, that with the longer history comes first, then that with the larger id. (This is the
    /// replicated growable array of Roh et al., 2011, with depths in the graph as timestamps.)
    fn text(&self) -> Result<String, Box<dyn Error>> {
        let mut depths = BTreeMap::new();
        let mut behind: BTreeMap<String, BTreeMap<(u64, String), String>> = BTreeMap::new();
        let mut removed = BTreeSet::new();
        for event in self.events()? {
            // Parents come first, so their depths are known.
            let depth = event.parents.iter().map(|parent| depths[parent] + 1).max().unwrap_or(0);
            depths.insert(event.id.clone(), depth);
            let (id, edit) = (String::from_utf8(event.id)?, String::from_utf8(event.payload)?);
            match edit.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["insert", other, line] => {
                    behind.entry(other.into()).or_default().insert((depth, id), line.into());
                }
                ["remove", line, _] => drop(removed.insert(line.to_owned())),
                _ => return Err(format!("not an edit: {edit}").into()),
            }
        }
        let mut lines = Vec::new();
        // The next one last.
        let mut next: Vec<_> = behind.remove("top").unwrap_or_default().into_iter().collect();
        while let Some(((_, id), line)) = next.pop() {
            next.extend(behind.remove(&id).unwrap_or_default());
            if !removed.contains(&id) {
                lines.push(line);
            }
        }
        Ok(lines.join(" "))
    }
}
