//! There are no streams here.

pub(crate) fn name_of_second(_blob: &[u8]) -> Option<&[u8]> {
    unreachable!("no stream has a blob where there are no streams")
}
