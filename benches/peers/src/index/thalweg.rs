//! Thalweg: the engine's own files for known ids, without the rest of it. See `runs/src/lib.rs`.

use thalweg_runs::Index;

use super::{Contender, Setup, Store};
use crate::Failure;

pub(super) const CONTENDER: Contender =
    Contender { name: "thalweg", package: "thalweg", sorted: false, create };

fn create(setup: &Setup<'_>) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(Runs(Index::create(setup.dir, usize::try_from(setup.memory)?)?)))
}

struct Runs(Index);

impl Store for Runs {
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure> {
        self.0.look_up_arrivals(arrivals, |_, value| found.push(value))?;
        Ok(self.0.look_up_parents(parents, |_, value| found.push(value))?)
    }

    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure> {
        Ok(self.0.insert(items.iter().copied())?)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        Ok(self.0.settle()?)
    }
}
