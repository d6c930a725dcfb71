//! A map in memory, which is the bound: no files, no budget.

use hashbrown::HashMap;

use super::{Contender, Setup, Store};
use crate::Failure;

pub(super) const CONTENDER: Contender =
    Contender { name: "hashbrown", package: "hashbrown", sorted: false, create };

fn create(_setup: &Setup<'_>) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(Map(HashMap::new())))
}

struct Map(HashMap<u64, u64>);

impl Store for Map {
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure> {
        found.extend(arrivals.iter().chain(parents).map(|key| self.0.get(key).copied()));
        Ok(())
    }

    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure> {
        self.0.extend(items.iter().copied());
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}
