//! How a thread that indexes for others gets relieved.
//!
//! Whoever indexes may find ever more work of others, who publish faster than it can index. So a thread that comes with
//! much work of its own, or finds that the one at the index has asked for relief, offers to take over, and is given the index
//! between two tokens. It waits for that for some microseconds at most, then leaves like everybody else.

use crate::sync::{AtomicU32, Ordering, spin_loop};

/// Tokens that a thread indexes for others before it asks for relief.
pub(crate) const FAIR: u32 = if cfg!(loom) { 1 } else { 1024 };
/// Tokens of its own with which a thread offers to take over unasked.
pub(crate) const MUCH: u32 = if cfg!(loom) { 2 } else { 256 };
/// How often a thread that has offered looks whether it was given the index.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 1000 };

/// States, in the low two bits; the others count the offers, so that no answer is taken for that to another offer.
const QUIET: u32 = 0;
const ASKED: u32 = 1;
const OFFERED: u32 = 2;
const GIVEN: u32 = 3;
const STATE: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct Baton(AtomicU32);

impl Baton {
    /// Whether somebody waits to take over. For the thread that indexes.
    pub(crate) fn is_offered(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STATE == OFFERED // a hint: `give` finds out
    }

    /// Asks whoever comes next to take over. For the thread that indexes.
    pub(crate) fn ask(&self) {
        let now = self.0.load(Ordering::Relaxed); // checked by the exchange
        if now & STATE == QUIET {
            let asked = now | ASKED;
            // Relaxed: it says nothing of the index. If it fails, somebody has offered unasked.
            let _ = self
                .0
                .compare_exchange(now, asked, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Gives the index to whoever has offered; not if the offer was withdrawn. For the thread that indexes, which leaves.
    pub(crate) fn give(&self) -> bool {
        let now = self.0.load(Ordering::Relaxed); // checked by the exchange
        // Release: hands over all that was written to the index; pairs with `take`.
        now & STATE == OFFERED
            && self
                .0
                .compare_exchange(
                    now,
                    now + GIVEN - OFFERED,
                    Ordering::Release,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Offers to take over, if asked or if `much` is to be indexed; returns whether this thread now indexes.
    pub(crate) fn take(&self, much: bool) -> bool {
        let now = self.0.load(Ordering::Relaxed); // checked by the exchange
        let wanted = now & STATE == ASKED || (much && now & STATE == QUIET);
        let offered = (now & !STATE).wrapping_add(STATE + 1) | OFFERED;
        // Relaxed: nothing is read on the strength of an offer.
        let exchange = |from, to| {
            self.0
                .compare_exchange(from, to, Ordering::Relaxed, Ordering::Acquire)
        };
        if !wanted || exchange(now, offered).is_err() {
            return false;
        }
        for _ in 0..PATIENCE {
            spin_loop();
            // Relaxed: a hint, as the exchange below finds out.
            if self.0.load(Ordering::Relaxed) != offered {
                break;
            }
        }
        // Acquire on failure: receives the index, as nobody else answers this offer; pairs with `give`.
        let given = exchange(offered, offered - OFFERED).is_err();
        if given {
            self.0.store(offered - OFFERED, Ordering::Relaxed); // nobody else changes it once given
        }
        given
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::Arc;

    /// Whoever is given the index sees all that the giver wrote to it, and one of the two has it in the end: at every
    /// interleaving, with the offer answered early, late or not at all.
    #[test]
    fn baton_hands_over_what_was_written() {
        loom::model(|| {
            let shared = Arc::new((Baton::default(), AtomicU32::new(0)));
            let giver = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || {
                    let (baton, index) = &*shared;
                    index.store(1, Ordering::Relaxed);
                    baton.is_offered() && baton.give()
                })
            };
            let (baton, index) = &*shared;
            let taken = baton.take(true);
            if taken {
                assert_eq!(index.load(Ordering::Relaxed), 1);
            }
            assert_eq!(giver.join().unwrap(), taken);
        });
    }
}
