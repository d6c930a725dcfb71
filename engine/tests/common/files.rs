//! The files of a store as bytes, to look at and to harm.

use std::collections::BTreeMap;

use thalweg::storage::{Storage, read_file, write_all_at};

pub fn bytes(storage: &dyn Storage, name: &str) -> Vec<u8> {
    read_file(storage, name).expect("reads")
}

/// Puts a file in the place of what is there.
pub fn put(storage: &dyn Storage, name: &str, bytes: &[u8]) {
    let _ = storage.remove(name);
    let file = storage.create(name, bytes.len() as u64).expect("creates");
    write_all_at(&*file, bytes, 0).expect("writes");
}

/// Puts all files of another directory in the place of all that are there.
pub fn replace_all(storage: &dyn Storage, other: &dyn Storage) {
    for name in storage.list().expect("lists") {
        storage.remove(&name).expect("removes");
    }
    for (name, bytes) in snapshot(other) {
        put(storage, &name, &bytes);
    }
}

/// All files with their bytes.
pub fn snapshot(storage: &dyn Storage) -> BTreeMap<String, Vec<u8>> {
    let names = storage.list().expect("lists");
    names.into_iter().map(|name| (name.clone(), bytes(storage, &name))).collect()
}
