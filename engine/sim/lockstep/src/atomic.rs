//! Atomics: those of `std`, with a place before each access where the turn may go to another thread.

use std::sync::atomic::{self, Ordering};

use crate::point;

macro_rules! common {
    ($name:ident, $value:ty) => {
        /// An atomic, as `std` has it.
        #[derive(Debug, Default)]
        pub struct $name(atomic::$name);

        impl $name {
            /// An atomic that holds `value`.
            pub const fn new(value: $value) -> Self {
                $name(atomic::$name::new(value))
            }

            /// Loads the value.
            pub fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            /// Loads the value; nobody comes before.
            pub fn load_at_once(&self, order: Ordering) -> $value {
                self.0.load(order)
            }

            /// Stores a value.
            pub fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            /// Stores a value and returns the one before.
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.swap(value, order)
            }

            /// Stores `new` if the value is `current`.
            ///
            /// # Errors
            ///
            /// The value, if it is another.
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(current, new, success, failure)
            }

            /// The same; it does not fail without a reason here, which would not be the same twice.
            ///
            /// # Errors
            ///
            /// The value, if it is another.
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            /// Changes the value by `or`, and returns the one before.
            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_or(value, order)
            }
        }
    };
}

macro_rules! number {
    ($name:ident, $value:ty) => {
        common!($name, $value);

        impl $name {
            /// Adds, and returns the value before.
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_add(value, order)
            }

            /// Subtracts, and returns the value before.
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_sub(value, order)
            }

            /// Stores the larger of the two, and returns the value before.
            pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_max(value, order)
            }
        }
    };
}

common!(AtomicBool, bool);
number!(AtomicU8, u8);
number!(AtomicU64, u64);
number!(AtomicUsize, usize);
