//! A share learned online: what came of what there was, kept where many threads read and now and then one learns.

use crate::sync::{AtomicU32, Ordering};

/// Of how much (`all`) how much it was (`part`), both as float bits.
#[derive(Debug)]
pub(crate) struct Ratio {
    part: AtomicU32,
    all: AtomicU32,
}

impl Ratio {
    /// Words of one in a file.
    pub(crate) const WORDS: usize = 2;

    /// A share that stands for so many observations.
    pub(crate) fn new(share: f32, observations: f32) -> Self {
        Self {
            part: AtomicU32::new((share * observations).to_bits()),
            all: AtomicU32::new(observations.to_bits()),
        }
    }

    pub(crate) fn share(&self) -> f32 {
        let (part, all) = self.pair();
        part / all
    }

    /// Learns an observation of some weight, a share of which it was. Of more observations than `memory` the older fade.
    pub(crate) fn learn(&self, share: f32, weight: f32, memory: f32) {
        let (mut part, mut all) = self.pair();
        let room = memory - weight;
        if all > room {
            part *= room / all;
            all = room;
        }
        let all = all + weight;
        let part = (part + weight * share).clamp(0.0, all); // a share aimed at may be out of range
        self.set(part.to_bits(), all.to_bits());
    }

    /// It, as words.
    pub(crate) fn words(&self) -> [u32; Self::WORDS] {
        let (part, all) = self.pair();
        [part.to_bits(), all.to_bits()]
    }

    /// Puts back what [`Self::words`] has given, if it makes sense.
    pub(crate) fn restore(&self, words: &[u32], memory: f32) {
        let [part, all] = [words[0], words[1]].map(f32::from_bits);
        if part >= 0.0 && part <= all && all > 0.0 && all <= memory {
            self.set(words[0], words[1]);
        }
    }

    fn pair(&self) -> (f32, f32) {
        let load = |value: &AtomicU32| f32::from_bits(value.load(Ordering::Relaxed)); // estimates: any mixture of old and new will do
        (load(&self.part), load(&self.all))
    }

    fn set(&self, part: u32, all: u32) {
        self.part.store(part, Ordering::Relaxed); // of two that learn at once one may be lost
        self.all.store(all, Ordering::Relaxed); // as above
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_begins_as_told_and_becomes_what_it_sees() {
        let ratio = Ratio::new(0.25, 20.0);
        assert_eq!(ratio.share(), 0.25);
        (0..60).for_each(|_| ratio.learn(1.0, 1.0, 1000.0));
        assert!((ratio.share() - 65.0 / 80.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_old_fades() {
        let ratio = Ratio::new(1.0, 100.0);
        (0..1000).for_each(|_| ratio.learn(0.0, 1.0, 100.0));
        assert!(ratio.share() < 1e-3);
    }

    #[test]
    fn nonsense_is_not_put_back() {
        let ratio = Ratio::new(0.5, 20.0);
        for (part, all) in [
            (3.0, 2.0),
            (-1.0, 2.0),
            (0.0, 0.0),
            (f32::NAN, 2.0),
            (1.0, 1e9),
        ] {
            ratio.restore(&[part, all].map(f32::to_bits), 1000.0);
            assert_eq!(ratio.share(), 0.5);
        }
        ratio.restore(&Ratio::new(0.75, 4.0).words(), 1000.0);
        assert_eq!(ratio.share(), 0.75);
    }
}
