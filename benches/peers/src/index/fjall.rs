//! fjall: one keyspace, one write batch for each batch, no sync before the end.

use ::fjall::config::CompressionPolicy;
use ::fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Contender, Setup, Store};
use crate::Failure;

pub(super) const CONTENDER: Contender =
    Contender { name: "fjall", package: "fjall", sorted: true, create };

fn create(setup: &Setup<'_>) -> Result<Box<dyn Store>, Failure> {
    let database = Database::builder(setup.dir).cache_size(setup.memory).open()?;
    // Random keys do not compress.
    let options = || {
        KeyspaceCreateOptions::default()
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
    };
    let keys = database.keyspace("keys", options)?;
    Ok(Box::new(Open { database, keys }))
}

struct Open {
    database: Database,
    keys: Keyspace,
}

impl Store for Open {
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure> {
        for key in arrivals.iter().chain(parents) {
            let value = self.keys.get(key.to_be_bytes())?;
            let value = value.map(|value| <[u8; 8]>::try_from(&*value)).transpose()?;
            found.push(value.map(u64::from_be_bytes));
        }
        Ok(())
    }

    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure> {
        let mut writes = self.database.batch().durability(None);
        for (key, value) in items {
            writes.insert(&self.keys, key.to_be_bytes(), value.to_be_bytes());
        }
        Ok(writes.commit()?)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}
