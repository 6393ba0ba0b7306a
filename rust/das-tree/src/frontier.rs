//! What may be drafted next: the best candidates, as many as there is still room for in the draft.
//!
//! Candidates only ever come in, and the best one goes out. So one that has as many better ones before it as there is room will
//! never be drafted, and is not kept. Most are of this kind.

/// The best of what has come in, in rising order.
#[derive(Debug)]
pub(crate) struct Frontier<T> {
    best: Vec<T>,
    room: usize,
}

impl<T> Default for Frontier<T> {
    fn default() -> Self {
        let (best, room) = (Vec::new(), 0);
        Self { best, room }
    }
}

impl<T: Ord + Copy> Frontier<T> {
    /// Begins anew, for at most so many that will go out.
    pub(crate) fn clear(&mut self, room: usize) {
        self.best.clear();
        self.room = room;
    }

    /// Takes one in, if it may ever go out.
    pub(crate) fn push(&mut self, candidate: T) {
        let worse = self
            .best
            .iter()
            .take_while(|&other| *other < candidate)
            .count();
        if self.best.len() < self.room {
            self.best.insert(worse, candidate);
        } else if worse > 0 {
            self.best.copy_within(1..worse, 0);
            self.best[worse - 1] = candidate;
        }
    }

    /// Lets the best one out.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let best = self.best.pop()?;
        self.room -= 1;
        Some(best)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn those_that_go_out_are_those_of_a_heap(
            room in 1usize..20,
            rounds in prop::collection::vec(prop::collection::vec(0u32..40, 0..12), 0..20),
        ) {
            let (mut frontier, mut heap) = (Frontier::default(), BinaryHeap::new());
            frontier.clear(room);
            for candidates in rounds.iter().take(room) {
                candidates.iter().for_each(|&candidate| frontier.push(candidate));
                heap.extend(candidates.iter().copied());
                prop_assert_eq!(frontier.pop(), heap.pop());
                prop_assert!(frontier.best.len() <= room);
            }
        }
    }
}
