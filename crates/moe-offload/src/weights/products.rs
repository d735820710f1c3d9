//! Numbers that several threads compute.

use std::sync::atomic::{AtomicU32, Ordering};

/// Products, each of which is put once, by whichever thread.
pub(super) struct Products(Vec<AtomicU32>);

impl Products {
    pub(super) fn new(count: usize) -> Products {
        Products((0..count).map(|_| AtomicU32::new(0)).collect())
    }

    pub(super) fn put(&self, place: usize, value: f32) {
        self.0[place].store(value.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn into_values(self) -> Vec<f32> {
        self.0.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect()
    }
}
