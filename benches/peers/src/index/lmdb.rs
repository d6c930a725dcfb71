//! LMDB, through heed: one database of integer keys, one write transaction for each batch.
//!
//! It has no cache of its own: what it maps is in the page cache, whatever the budget.

#![allow(unsafe_code)] // To map a file is unsafe, and so is a flag that leaves syncs to the caller.

use heed::byteorder::NativeEndian;
use heed::types::U64;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, IntegerComparator};

use super::{Contender, Setup, Store};
use crate::Failure;

pub(super) const CONTENDER: Contender =
    Contender { name: "lmdb", package: "heed", sorted: true, create };

type Keys = Database<U64<NativeEndian>, U64<NativeEndian>, IntegerComparator>;

/// Address space for a key; the file is as long, and has holes.
const MAP_LEN_PER_KEY: u64 = 128;
const MAP_LEN_MIN: u64 = 4 << 30;

fn create(setup: &Setup<'_>) -> Result<Box<dyn Store>, Failure> {
    let map_len = MAP_LEN_MIN + (setup.keys * MAP_LEN_PER_KEY).next_multiple_of(1 << 20);
    let mut options = EnvOpenOptions::new();
    options.map_size(usize::try_from(map_len)?);
    // SAFETY: the directory is this run's alone, nothing else touches the file while it is mapped, and
    // a store that a crash has left half written is thrown away with its run.
    let env = unsafe {
        options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP | EnvFlags::NO_READ_AHEAD);
        options.open(setup.dir)?
    };
    let mut transaction = env.write_txn()?;
    let keys = env
        .database_options()
        .types::<U64<NativeEndian>, U64<NativeEndian>>()
        .key_comparator::<IntegerComparator>()
        .create(&mut transaction)?;
    transaction.commit()?;
    Ok(Box::new(Open { env, keys }))
}

struct Open {
    env: Env,
    keys: Keys,
}

impl Store for Open {
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure> {
        let transaction = self.env.read_txn()?;
        for key in arrivals.iter().chain(parents) {
            found.push(self.keys.get(&transaction, key)?);
        }
        Ok(())
    }

    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure> {
        let mut transaction = self.env.write_txn()?;
        for (key, value) in items {
            self.keys.put(&mut transaction, key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        Ok(self.env.force_sync()?)
    }
}
