//! Exact accounting of bytes, for one tree and for the history it belongs to.

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering};

/// The bytes of a history's trees.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// In trees that calls can reach: the same calls give the same figure, whatever other threads do meanwhile.
    live: AtomicUsize,
    /// In trees that are being built or dropped in the background.
    aside: AtomicUsize,
}

impl Ledger {
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed) // a sum: nothing is read on the strength of it
    }

    pub(crate) fn aside(&self) -> usize {
        self.aside.load(Ordering::Relaxed) // as above
    }
}

/// Counts bytes as they are allocated, for one tree and, if it belongs to a history, in its ledger.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    own: AtomicUsize,
    ledger: Option<Arc<Ledger>>,
    aside: AtomicBool,
}

impl Meter {
    /// The meter of a tree that is counted aside until [`Self::set_aside`] says otherwise.
    pub(crate) fn aside(ledger: Arc<Ledger>) -> Self {
        Self {
            own: AtomicUsize::new(0),
            ledger: Some(ledger),
            aside: AtomicBool::new(true),
        }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.own.fetch_add(bytes, Ordering::Relaxed); // a sum: nothing is read on the strength of it
        if let Some(total) = self.total() {
            total.fetch_add(bytes, Ordering::Relaxed); // as above
        }
    }

    pub(crate) fn sub(&self, bytes: usize) {
        self.own.fetch_sub(bytes, Ordering::Relaxed); // as above
        if let Some(total) = self.total() {
            total.fetch_sub(bytes, Ordering::Relaxed); // as above
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.own.load(Ordering::Relaxed) // as above
    }

    /// Moves the tree's bytes to the other side of the ledger. Only while nobody appends to it.
    pub(crate) fn set_aside(&self, aside: bool) {
        if self.aside.load(Ordering::Relaxed) == aside {
            return; // changed only under the lock of the history
        }
        let bytes = self.bytes();
        if let Some(total) = self.total() {
            total.fetch_sub(bytes, Ordering::Relaxed); // a sum, as above
        }
        self.aside.store(aside, Ordering::Relaxed); // as above
        if let Some(total) = self.total() {
            total.fetch_add(bytes, Ordering::Relaxed); // a sum, as above
        }
    }

    fn total(&self) -> Option<&AtomicUsize> {
        let ledger = self.ledger.as_ref()?;
        // Set while the tree is in one thread's hands, which then publishes the tree.
        Some(if self.aside.load(Ordering::Relaxed) {
            &ledger.aside
        } else {
            &ledger.live
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.sub(self.bytes());
    }
}
