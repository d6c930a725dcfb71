//! redb: one table, one write transaction for each batch.

use ::redb::{Database, Durability, ReadableDatabase, TableDefinition};

use super::{Contender, Setup, Store};
use crate::Failure;

pub(super) const CONTENDER: Contender =
    Contender { name: "redb", package: "redb", sorted: true, create };

const KEYS: TableDefinition<'_, u64, u64> = TableDefinition::new("keys");
fn create(setup: &Setup<'_>) -> Result<Box<dyn Store>, Failure> {
    let mut builder = Database::builder();
    builder.set_cache_size(usize::try_from(setup.memory)?);
    let database = builder.create(setup.dir.join("keys.redb"))?;
    let open = Open { database };
    open.write(Durability::Immediate, &[])?;
    Ok(Box::new(open))
}

struct Open {
    database: Database,
}

impl Open {
    fn write(&self, durability: Durability, items: &[(u64, u64)]) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut keys = transaction.open_table(KEYS)?;
            for (key, value) in items {
                keys.insert(key, value)?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Store for Open {
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure> {
        let keys = self.database.begin_read()?.open_table(KEYS)?;
        for key in arrivals.iter().chain(parents) {
            found.push(keys.get(key)?.map(|value| value.value()));
        }
        Ok(())
    }

    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure> {
        self.write(Durability::None, items)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        // What was committed without durability is kept by the next durable commit, and not before.
        self.write(Durability::Immediate, &[])
    }
}
