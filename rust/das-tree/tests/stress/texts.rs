//! Texts for threads to append, and what several tests need.

use das_tree::{Draft, Shape};

/// A small generator, so that a failure repeats.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// Texts that share long stretches, over a small alphabet with some rare tokens: splits, takeovers, wide nodes.
pub fn texts(count: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let common: Vec<u32> = (0..length).map(|_| random.below(5) as u32).collect();
    let noisy = |_| {
        let mut flip = |token: u32| match random.below(30) {
            0 => random.below(5) as u32,
            1 => 5 + random.below(400) as u32,
            _ => token,
        };
        common.iter().map(|&token| flip(token)).collect()
    };
    (0..count).map(noisy).collect()
}

/// How often a string occurs in texts.
pub fn occurrences(texts: &[Vec<u32>], string: &[u32]) -> u32 {
    let windows = texts.iter().flat_map(|text| text.windows(string.len()));
    windows.filter(|&window| window == string).count() as u32
}

/// Checks what holds of every draft.
pub fn check_draft(draft: &Draft, shape: Shape) {
    for i in 0..draft.len() {
        let parent = draft.parents[i];
        assert!(parent < i as i32 && (shape == Shape::Tree || parent == i as i32 - 1));
        assert!((0.0..=1.0).contains(&draft.probabilities[i]), "{draft:?}");
        assert!(i == 0 || draft.probabilities[i] <= draft.probabilities[i - 1]);
        let siblings = (0..i).filter(|&j| draft.parents[j] == parent);
        assert!(
            siblings
                .into_iter()
                .all(|j| draft.tokens[j] != draft.tokens[i])
        );
    }
}

/// A scope waits for its threads too, but in a way that ThreadSanitizer does not see.
pub fn join(threads: Vec<std::thread::ScopedJoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}
